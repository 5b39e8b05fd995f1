"""One build serves every torch from 2.11 on: the library asks for functions of torch's C API alone, none newer than that."""

import shutil
from pathlib import Path

import pytest

import acdc_kernels
from acdc_kernels import _native

from . import abi

OPS = Path(acdc_kernels.__file__).parent / "_ops.so"
pytestmark = pytest.mark.skipif(
    not (OPS.exists() and shutil.which("nm") and shutil.which("readelf")),
    reason=_native.why_not() or "needs nm, readelf and an ELF library",
)


def test_the_headers_tell_what_is_new():
    known = abi.c_api()
    assert known["aoti_torch_get_data_ptr"] == abi.BEFORE_VERSIONS
    assert known["torch_call_dispatcher"] == (2, 10)


def test_nothing_is_asked_of_torch_that_2_11_lacks():
    assert abi.newer_than((2, 11), OPS) == []


def test_what_is_new_or_no_c_function_would_be_found():
    assert abi.newer_than((2, 9), OPS)  # some came with 2.10
    torch_python = Path(abi.torch.__file__).parent / "lib" / "libtorch_python.so"
    if torch_python.exists():
        assert any(line.endswith(": C++") for line in abi.newer_than((2, 11), torch_python))


def test_no_folder_of_the_machine_that_built_it_is_in_it():
    assert [line for line in abi.folders(OPS).splitlines() if line.startswith("/")] == []
    assert "libcudart" not in abi.folders(OPS)
    assert str(abi.HEADERS).encode() not in OPS.read_bytes()
