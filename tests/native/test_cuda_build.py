"""The CUDA kernels without a GPU: setup.py builds them for four architectures, beside a torch that may have no CUDA, and they load."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import abi, cuda_resources

ROOT = Path(__file__).parents[2]
SOURCES = ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE")


def find_nvcc():
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    nvcc, why = module.find_nvcc()
    if nvcc and torch.version.cuda and module.nvcc_version(nvcc)[0] != int(torch.version.cuda.split(".")[0]):
        return None, f"{nvcc} is of another major version than torch's CUDA"
    return nvcc, why


NVCC, WHY_NOT = find_nvcc()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not NVCC, reason=f"needs nvcc: {WHY_NOT}")]


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-6000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


class Build:
    """A copy of the sources, built in place."""

    def __init__(self, folder):
        self.folder = folder
        self.package = folder / "acdc_kernels"
        ignored = shutil.ignore_patterns("*.so", "*.dylib", "__pycache__", "benchmarks")
        for name in ("csrc", "acdc_kernels"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in SOURCES:
            shutil.copy(ROOT / name, folder / name)

    def make(self, **environment):
        """What the build prints."""
        names = ("ACDC_CUDA", "TORCH_CUDA_ARCH_LIST")
        env = {name: value for name, value in os.environ.items() if name not in names}
        command = (sys.executable, "setup.py", "build_ext", "--inplace")
        return run(*command, cwd=self.folder, env={**env, "CUDAFLAGS": "-Xptxas=-v", **environment})

    def python(self, code):
        env = {**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return run(sys.executable, "-W", "ignore", "-c", code, cwd=self.folder, env=env).strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(the build, what it printed)"""
    build = Build(tmp_path_factory.mktemp("cuda"))
    return build, build.make(ACDC_CUDA="1", TORCH_CUDA_ARCH_LIST="8.0;9.0a;10.0;12.0")


FACTS = """
import torch, acdc_kernels as acdc
from acdc_kernels import _native
from acdc_kernels.ops._registry import has_kernel
from acdc_kernels.ops.mask_bits import contract
from acdc_kernels.train.info import info_text
print(_native.available(), has_kernel(contract.pack_mask_op, "cpu"), has_kernel(contract.pack_mask_op, "cuda"))
(bits,) = acdc.topk_mask([torch.tensor([1.0, -3.0, 2.0])], 1)
print(acdc.unpack_mask(bits, (3,)).tolist())
print(info_text())
"""


def test_it_loads_and_the_cpu_kernels_run(built):
    build, printed = built
    assert "CUDA kernels by nvcc" in printed
    lines = build.python(FACTS).splitlines()
    assert lines[:2] == ["True True True", "[False, True, False]"]
    text = "\n".join(lines)
    assert f"cuda                {cuda_resources.release(NVCC)}\n" in text
    assert "cuda architectures  80-real 90a-real 100-real 120-real\n" in text
    if not torch.version.cuda:
        assert f"CUDA kernels cannot run: torch {torch.__version__} is built without CUDA." in lines


def test_it_asks_for_nothing_that_torch_does_not_bring(built):
    library = built[0].package / "_ops.so"
    assert abi.newer_than((2, 11), library) == []
    folders = abi.folders(library)
    assert [line for line in folders.splitlines() if line.startswith("/")] == []
    assert "libcudart" not in folders
    assert str(built[0].folder).encode() not in library.read_bytes()
    if not torch.version.cuda:
        assert "libtorch_cuda" not in folders


def test_no_kernel_spills_and_the_page_of_resources_is_true(built):
    kernels = cuda_resources.parse(built[1])
    assert kernels
    assert cuda_resources.problems(kernels) == []
    release, page = cuda_resources.release(NVCC), cuda_resources.PAGE.read_text(encoding="utf-8")
    if f"as nvcc {release} reports" not in page:
        pytest.skip(f"registers are compared with the same nvcc only, and the page is not of {release}")
    assert cuda_resources.page(kernels, release) == page, "python tests/native/cuda_resources.py writes it anew"


def test_another_wish_in_the_same_folder_builds_anew(built):
    build = built[0]
    assert "no CUDA kernels (ACDC_CUDA=0)" in build.make(ACDC_CUDA="0")
    assert build.python(FACTS).splitlines()[0] == "True True False"
    assert (
        build.python("from acdc_kernels import _native; print(_native.why_no_cuda())")
        == "built without CUDA: ACDC_CUDA=0"
    )
    (build.folder / "csrc" / "mask_bits" / "mask_bits.cu").write_text("this is no C++\n")
    environment = {**os.environ, "ACDC_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0a"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    failed = subprocess.run(command, cwd=build.folder, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    last = failed.stderr.strip().splitlines()[-1]
    assert (
        last
        == "acdc-kernels: the build failed: the first error above says where; ACDC_CUDA=0 builds without the CUDA kernels"
    )
    assert "Traceback" not in failed.stderr
    assert "for 90a-real" in failed.stderr
    assert "mask_bits.cu" in failed.stdout  # the CUDA kernels are back
