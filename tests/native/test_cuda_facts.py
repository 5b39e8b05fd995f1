"""What is said of CUDA kernels: for which cards they were built, and why they don't run."""

import re
import warnings

import pytest
import torch

from acdc_kernels import _native
from acdc_kernels.ops import _registry
from acdc_kernels.train.info import info_text

BUILT = {
    "version": "1",
    "torch_target": "2.11",
    "cuda": "13.0.88",
    "cuda_architectures": "80-real 90a-real",
    "no_cuda": "",
}
OFF = {**BUILT, "cuda": "off", "cuda_architectures": "", "no_cuda": "ACDC_CUDA=0"}


@pytest.mark.parametrize(
    ("architectures", "runs_on", "not_on"),
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0)]),
        ("90a-real", [(9, 0)], [(8, 9), (10, 0)]),
        ("90a", [(9, 0)], [(10, 0)]),
        ("100f-real", [(10, 0), (10, 3)], [(11, 0), (12, 0)]),
        ("90-virtual", [(9, 0), (12, 0)], [(8, 9)]),
        ("80-real 90a-real 100-real 120", [(8, 0), (9, 0), (10, 3), (12, 0), (12, 1), (13, 0)], [(7, 5), (11, 0)]),
        ("native", [(8, 0)], []),
        ("", [], [(8, 0)]),
    ],
)
def test_which_cards_a_build_covers(architectures, runs_on, not_on):
    assert [card for card in runs_on if not _native.covers(architectures, card)] == []
    assert [card for card in not_on if _native.covers(architectures, card)] == []


@pytest.fixture
def situation(monkeypatch):
    """A build, a torch and a card to speak of; what was said before is forgotten, and what is said here too."""

    def forget():
        for cached in (_native.why_no_cuda, _native._warn_once):
            cached.cache_clear()

    def be(cuda="13.0", card=(9, 0), **built):
        monkeypatch.setattr(_native, "available", lambda: True)
        monkeypatch.setattr(_native, "build_info", lambda: BUILT | built)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
        forget()

    yield be
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({}, ""),
        ({"cuda_architectures": "80"}, ""),
        ({"card": (8, 9)}, ""),
        (
            {"card": (12, 0)},
            'built for 80-real 90a-real, not for this card\'s compute capability 12.0: build with TORCH_CUDA_ARCH_LIST="12.0"',
        ),
        ({"card": None}, "torch finds no CUDA device"),
        ({"cuda": None}, f"torch {torch.__version__} is built without CUDA"),
    ],
)
def test_why_cuda_kernels_do_not_run(facts, why, situation):
    situation(**facts)
    assert _native.why_no_cuda() == why


def test_a_build_without_cuda_says_why(situation, monkeypatch):
    situation()
    monkeypatch.setattr(_native, "build_info", lambda: OFF)
    assert _native.why_no_cuda() == "built without CUDA: ACDC_CUDA=0"


def test_on_a_gpu_each_op_without_a_kernel_is_named_once(situation):
    situation()
    with pytest.warns(UserWarning, match=r"runs on cuda \(slow\): sparse_linear has no CUDA kernel in this version"):
        _native.warn_reference("cuda", "sparse_linear")
    with pytest.warns(UserWarning, match="gather_values has no CUDA kernel"):
        _native.warn_reference("cuda", "gather_values")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.warn_reference("cuda", "sparse_linear")


def test_where_no_kernel_can_run_that_is_said_once(situation):
    situation(card=(12, 0))
    with pytest.warns(UserWarning, match=r"runs on cuda \(slow\): built for 80-real 90a-real, not for this card"):
        _native.warn_reference("cuda", "topk_mask")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.warn_reference("cuda", "pack_mask")


def test_info_says_what_was_built_and_why_it_does_not_run(situation, monkeypatch):
    situation(card=None)
    text = info_text()
    assert "cuda                13.0.88\n" in text
    assert "cuda architectures  80-real 90a-real\n" in text
    assert "CUDA kernels cannot run: torch finds no CUDA device." in text.splitlines()
    monkeypatch.setattr(_native, "build_info", lambda: OFF)
    _native.why_no_cuda.cache_clear()
    text = info_text()
    assert "off (ACDC_CUDA=0)\n" in text
    assert "CUDA kernels cannot run: built without CUDA: ACDC_CUDA=0." in text.splitlines()


@pytest.mark.parametrize(
    ("tools", "compiler", "header", "why"),
    [
        (("gcc",), "", True, ""),
        (("clang",), "", True, ""),
        (("my-cc",), "my-cc", True, ""),
        ((), "my-cc", True, "Triton finds no C compiler: no gcc, no clang, and none that CC names"),
        (("gcc",), "", False, "Triton needs Python's headers, but there is no .*Python.h"),
    ],
)
def test_triton_needs_a_compiler(tools, compiler, header, why, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_registry.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(_registry.shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.setattr(_registry.os.path, "exists", lambda path: header)
    monkeypatch.setenv("CC", compiler)
    _registry._no_compiler.cache_clear()
    try:
        assert re.fullmatch(why, _registry.why_no_triton())
    finally:
        _registry._no_compiler.cache_clear()
