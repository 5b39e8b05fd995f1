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


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="needs cmake and a C++ compiler")
def test_kernels_without_torch_under_sanitizers(tmp_path):
    run("cmake", "-S", ROOT, "-B", tmp_path, "-DACDC_TESTS=ON", "-DACDC_SANITIZE=address,undefined")
    run("cmake", "--build", tmp_path, "-j", "2")
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path, "--output-on-failure", "-j", "2")
