"""The C++ tests, built without torch and run under AddressSanitizer and UndefinedBehaviorSanitizer."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
    return result.stdout


needs_tools = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a C++ compiler"
)


@needs_tools
def test_kernels_without_torch_under_sanitizers(tmp_path):
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DACDC_TESTS=ON", "-DACDC_SANITIZE=address,undefined")
    run("cmake", "--build", tmp_path, "-j", "2")
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path, "--output-on-failure", "-j", "2")


@pytest.mark.slow
@needs_tools
def test_emulated_kernels_with_as_many_threads_as_on_a_gpu(tmp_path):
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DACDC_TESTS=ON", "-DACDC_EMULATED_THREADS=1024")
    tests = ("test_emulator", "test_bundles", "test_topk_cuda", "test_topk_patterns_cuda")
    run("cmake", "--build", tmp_path, "-j", "2", "--target", *tests)
    chosen = f"^({'|'.join(tests)})$"
    out = run("ctest", "--test-dir", tmp_path, "--output-on-failure", "-j", "2", "-R", chosen)
    assert "100% tests passed" in out
    assert out.count(" Passed ") == len(tests)
