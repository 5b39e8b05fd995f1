"""The compiled libraries: loads them once, and says why they are missing when they are.

``_ops`` registers the CPU kernels with torch's dispatcher; ``_C`` (pybind11, free of torch) tells build facts and CPU
features.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from pathlib import Path

import torch

_HERE = Path(__file__).parent


@functools.cache
def _load() -> tuple[object | None, str]:
    """(the ``_C`` module, "") or (None, the reason)."""
    library = next((p for p in (_HERE / "_ops.so", _HERE / "_ops.dylib") if p.exists()), None)
    if library is None:
        return None, "the compiled library _ops was not built (pip install with a C++17 compiler and cmake at hand)"
    try:
        native = importlib.import_module("acdc_kernels._C")
        torch.ops.load_library(str(library))
    except (ImportError, OSError) as error:
        return None, f"the compiled libraries could not be loaded: {error}"
    return native, ""


def available() -> bool:
    """Whether the compiled kernels are loaded."""
    return _load()[0] is not None


def why_not() -> str:
    """Why the compiled kernels are missing; empty when they are there."""
    return _load()[1]


def build_info() -> dict[str, str]:
    """What was built: version, compiler, build type, ISA levels, CUDA; empty without compiled libraries."""
    native, _ = _load()
    return dict(native.build_info()) if native is not None else {}


def cpu_isa() -> str:
    """The ISA level that CPU kernels run at: ``avx512``, ``avx2``, ``generic``; ``none`` without compiled libraries.

    ``ACDC_CPU_ISA`` forces a level; one that this processor or build lacks is an error at import.
    """
    native, _ = _load()
    return native.cpu_isa() if native is not None else "none"


def cpu_fp16() -> str:
    """Whether half-precision CPU products can run: ``native`` (AVX512-FP16), ``emulated``, ``none``.

    ``ACDC_CPU_FP16=emulated`` asks for emulation, which is slow and for tests.
    """
    native, _ = _load()
    return native.cpu_fp16() if native is not None else "none"


def why_no_fp16() -> str:
    """Why half-precision CPU products can't run, as far as is known."""
    isa, flags = cpu_isa(), _cpu_flags()
    if flags is not None and "avx512_fp16" not in flags:
        why = "this processor has no AVX512-FP16"
    elif isa != "avx512":
        why = (
            f"the kernels run at level {isa}, by ACDC_CPU_ISA or for what the build or processor lacks: no AVX512-FP16"
        )
    elif flags is not None:
        why = "this build has no AVX512-FP16 (its compiler must know -mavx512fp16)"
    else:
        why = "this processor or build has no AVX512-FP16"
    return f"{why}; ACDC_CPU_FP16=emulated is slow emulation, for tests"


def _cpu_flags() -> list[str] | None:
    """Of the first processor; None where the system doesn't tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), None)


@functools.cache
def warn_reference(device_type: str) -> None:
    """Warn, once a device type, that plain torch runs in place of the kernels."""
    reason = why_not() if device_type == "cpu" else f"this version has no {device_type} kernels"
    warnings.warn(f"acdc_kernels: the plain torch reference runs on {device_type} (slow): {reason}", stacklevel=2)


def load() -> None:
    """Load the compiled kernels, if they were built; an ``ACDC_CPU_ISA`` that asks for what cannot run raises here."""
    cpu_isa()
