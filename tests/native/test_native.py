"""The compiled libraries: what they say of themselves, and what happens where they are missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import acdc_kernels
from acdc_kernels import _native

PACKAGE = Path(acdc_kernels.__file__).parent


def need_kernels():
    """Skips where no compiler could have built the kernels; where one could, missing kernels are a failure."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip(f"no C++ compiler: {_native.why_not()}")
    assert _native.available(), _native.why_not()


def test_build_facts():
    need_kernels()
    facts = _native.build_info()
    assert facts["version"] == acdc_kernels.__version__
    assert facts["torch_target"] == "2.11"
    assert _native.cpu_isa() in ("avx512", "avx2", "generic")
    assert _native.why_not() == ""


def test_build_facts_need_no_torch():
    need_kernels()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import _C; assert 'torch' not in sys.modules; print(_C.cpu_isa())"
    )
    run = subprocess.run([sys.executable, "-c", code, str(PACKAGE)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == _native.cpu_isa()


@pytest.fixture
def bare_package(tmp_path):
    """The package's sources with no compiled library beside them."""
    shutil.copytree(PACKAGE, tmp_path / "acdc_kernels", ignore=shutil.ignore_patterns("*.so", "*.dylib", "__pycache__"))
    return tmp_path


def python(code, folder):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_compiled_extension_the_reference_runs_after_one_warning(bare_package):
    code = """
import torch, acdc_kernels as acdc
weights = [torch.tensor([1.0, -3.0, 2.0])]
opt = acdc.MaskedSGD([torch.nn.Parameter(weights[0].clone())], lr=0.1)
for _ in range(3):
    bits = acdc.topk_mask(weights, 1)
print(acdc.unpack_mask(bits[0], (3,)).tolist())
"""
    run = python(code, bare_package)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[False, True, False]"
    assert run.stderr.count("the plain torch reference runs on cpu") == 1
    assert "_ops was not built" in run.stderr


def test_a_broken_library_is_reported_not_hidden(bare_package):
    (bare_package / "acdc_kernels" / "_ops.so").write_bytes(b"not a library")
    run = python("from acdc_kernels import _native; print(_native.available(), _native.why_not())", bare_package)
    assert run.stdout.startswith("False the compiled libraries could not be loaded: ")


@pytest.mark.parametrize(
    ("flags", "isa", "why"),
    [
        (["avx512f"], "avx512", "this processor has no AVX512-FP16"),
        (["avx512f", "avx512_fp16"], "avx2", "the kernels run at level avx2, by ACDC_CPU_ISA or for what the build or"),
        (["avx512f", "avx512_fp16"], "avx512", "this build has no AVX512-FP16"),
        (None, "avx512", "this processor or build has no AVX512-FP16"),
    ],
)
def test_why_there_are_no_half_precision_products(flags, isa, why, monkeypatch):
    monkeypatch.setattr(_native, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(_native, "cpu_isa", lambda: isa)
    assert _native.why_no_fp16().startswith(why)
    assert _native.why_no_fp16().endswith("ACDC_CPU_FP16=emulated is slow emulation, for tests")
