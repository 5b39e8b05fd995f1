"""What the CUDA kernels' code has to be for memory's sake, read from the PTX that nvcc makes of it."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from .test_cuda_build import NVCC, WHY_NOT

pytestmark = pytest.mark.skipif(not NVCC, reason=f"needs nvcc: {WHY_NOT}")
CSRC = Path(__file__).parents[2] / "csrc"
# Of a thread's turn in the contiguous kernel: its vectors, then the vectors of a state for one of the parameter.
TURNS = {"sgd": 2, "adamw": 1}
STATES = {"sgd": 1, "adamw": 3}
TYPES = {"ff": 1, "dd": 1, "NS_4bf16ES3_": 1, "NS_3f16ES3_": 1, "NS_4bf16Ef": 2, "NS_3f16Ef": 2}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """optimizer -> kernel's name -> its PTX for compute capability 9.0."""

    def compiled(name):
        ptx = tmp_path_factory.mktemp("ptx") / f"{name}.ptx"
        flags = ["-std=c++17", "-O3", "-fmad=false", "--expt-relaxed-constexpr", f"-I{CSRC}", "-gencode"]
        command = [NVCC, *flags, "arch=compute_90a,code=compute_90a", "-ptx", "-o", ptx]
        subprocess.run([*map(str, command), str(CSRC / "masked_update" / f"{name}.cu")], check=True)
        return dict(re.findall(r"\.entry (\w+)\((.*?)\n\}", ptx.read_text(), flags=re.DOTALL))

    return {name: compiled(name) for name in TURNS}


def accesses(ptx):
    return Counter(re.findall(r"\s((?:ld|st)\.(?:global|local)[.\w]*)", ptx))


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("optimizer", TURNS)
def test_contiguous_tensors_move_sixteen_bytes_at_a_time(optimizer, types, kernels):
    mangled = f"update_contiguousINS0_{'3Sgd' if optimizer == 'sgd' else '5AdamW'}E{types}Li"
    found = [accesses(ptx) for name, ptx in kernels[optimizer].items() if mangled in name]
    assert len(found) == 2  # the small table, the large one
    state = STATES[optimizer] * TYPES[types]
    for count in found:
        assert count["ld.global.v4.u32"] == TURNS[optimizer] * (2 + state)
        assert count["st.global.v4.u32"] == TURNS[optimizer] * (1 + state)


@pytest.mark.parametrize("optimizer", TURNS)
def test_nothing_lies_in_local_memory(optimizer, kernels):
    assert len(kernels[optimizer]) == 18 + (optimizer == "adamw")
    for name, ptx in kernels[optimizer].items():
        assert not [access for access in accesses(ptx) if "local" in access], name
