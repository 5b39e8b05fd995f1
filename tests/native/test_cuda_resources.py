"""The report of ptxas is read as it is meant."""

import shutil

import pytest

from . import cuda_resources
from .cuda_resources import Kernel

pytestmark = pytest.mark.skipif(not shutil.which("c++filt"), reason="needs c++filt")
NAME = "_ZN4acdc45_GLOBAL__N__c2b58f79_12_mask_bits_cu_f6514f2a{}"
PACK = NAME.format("4packEPKhNS_6LayoutEPh")
SHARED = "_ZN4acdc12upload_pieceILi960EEEvNS_11UploadPieceIXT_EEEPji"


def report(name, card, stack=0, spills=0, used="Used 40 registers, used 0 barriers"):
    return f"""ptxas info    : Compiling entry function '{name}' for '{card}'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {spills} bytes spill stores, 0 bytes spill loads
ptxas info    : {used}
ptxas info    : Compile time = 30.540 ms
"""


def test_a_report_is_read():
    used = "Used 255 registers, used 1 barriers, 1024 bytes smem, 512 bytes cmem[0], 8 bytes cmem[2]"
    text = report(PACK, "sm_80", used=used) + report(PACK, "sm_90a") + report(SHARED, "sm_80")
    kernels = cuda_resources.parse("noise\n" + text)
    assert kernels == {
        ("mask_bits", "pack"): {"sm_80": Kernel(255, 1024, 512, 0, 0), "sm_90a": Kernel(40, 0, None, 0, 0)},
        ("common", "upload_piece<960>"): {"sm_80": Kernel(40, 0, None, 0, 0)},
    }


def test_spills_stack_frames_and_gaps_are_named(monkeypatch):
    monkeypatch.setattr(cuda_resources, "sources", lambda: ["mask_bits/mask_bits", "topk/topk"])
    cards = ["sm_80", "sm_90a", "sm_100"]
    text = "".join(report(PACK, card, stack=16 * (card == "sm_100"), spills=8 * (card == "sm_80")) for card in cards)
    assert cuda_resources.problems(cuda_resources.parse(text)) == [
        "topk/topk.cu: no kernel in the report",
        "pack in mask_bits: not compiled for sm_120",
        "pack in mask_bits for sm_80: 0 bytes of stack frame, 8 of spills",
        "pack in mask_bits for sm_100: 16 bytes of stack frame, 0 of spills",
    ]


def test_another_form_of_report_is_noticed():
    with pytest.raises(ValueError, match="changed its form"):
        cuda_resources.parse(report(PACK, "sm_80", used="Uses forty registers"))


def test_every_file_of_the_build_is_one_of_the_repository():
    assert cuda_resources.sources()
    assert [
        name for name in cuda_resources.sources() if not (cuda_resources.ROOT / "csrc" / f"{name}.cu").exists()
    ] == []


def test_the_page_lists_what_the_report_says():
    text = "".join(report(PACK, card) for card in ("sm_80", "sm_90a", "sm_100"))
    page = cuda_resources.page(cuda_resources.parse(text + report(PACK, "sm_120", used="Used 38 registers")), "13.0.88")
    assert "as nvcc 13.0.88 reports" in page
    assert page.endswith("| mask_bits | `pack` | 40 / 40 / 40 / 38 | 0 | - |\n")
