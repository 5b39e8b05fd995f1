"""The compiled libraries: loads them once, and says why they are missing when they are.

``_ops`` registers the CPU kernels, and the CUDA kernels where they were built, with torch's dispatcher; ``_C``
(pybind11, free of torch) tells build facts and CPU features.
"""

from __future__ import annotations

import functools
import importlib
import re
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
    """What was built; empty without compiled libraries.

    ``version``, ``compiler``, ``build_type``, ``torch_target``; ``cuda``: nvcc's version, or ``off`` and ``no_cuda``
    says why; ``cuda_architectures``: what the CUDA kernels were compiled for, as CMake spells it.
    """
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


def covers(architectures: str, card: tuple[int, int]) -> bool:
    """Whether kernels built for ``architectures`` (as CMake spells them: ``80-real 90a-real 120``) run on a card.

    Machine code runs on cards of its major version from its own minor on, and of a variant (``a``) on no other card;
    code for the driver to compile (no ``-real``) on every newer card.
    """
    for name in architectures.split():
        found = re.fullmatch(r"(\d+)([af]?)(-real|-virtual)?", name)
        if not found:  # a name of CMake's, such as `all`
            return True
        number, variant, kind = found.groups()
        built = int(number[:-1]), int(number[-1])
        family = card[0] == built[0] and card >= built
        if card == built or (family and variant != "a" and kind != "-virtual"):
            return True
        if card > built and not variant and kind != "-real":
            return True
    return False


@functools.cache
def why_no_cuda() -> str:
    """Why no CUDA kernel can run here; empty where those that were built can."""
    if not available():
        return why_not()
    built = build_info()
    if built["cuda"] == "off":
        return f"built without CUDA: {built['no_cuda'] or 'ACDC_CUDA=OFF'}"
    if not torch.version.cuda:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    card = torch.cuda.get_device_capability()
    if not covers(built["cuda_architectures"], card):
        return (
            f"built for {built['cuda_architectures']}, not for this card's compute capability {card[0]}.{card[1]}: "
            f'build with TORCH_CUDA_ARCH_LIST="{card[0]}.{card[1]}"'
        )
    return ""


def warn_reference(device_type: str, op: str = "") -> None:
    """Warn, once for each reason, that plain torch runs in place of the kernels; ``op``: what has none of its own."""
    if device_type == "cpu":
        reason = why_not() or f"{op or 'this op'} has no CPU kernel in this version"
    elif device_type == "cuda":
        reason = why_no_cuda() or f"{op or 'this op'} has no CUDA kernel in this version"
    else:
        reason = f"this version has no {device_type} kernels"
    _warn_once(device_type, reason)


@functools.cache
def _warn_once(device_type: str, reason: str) -> None:
    warnings.warn(f"acdc_kernels: the plain torch reference runs on {device_type} (slow): {reason}", stacklevel=3)


def load() -> None:
    """Load the compiled kernels, if they were built; an ``ACDC_CPU_ISA`` that asks for what cannot run raises here."""
    cpu_isa()
