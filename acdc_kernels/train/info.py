"""``acdc-kernels info``: what was built, what this machine has, and which kernels run for each op."""

from __future__ import annotations

import torch

from .. import __version__, _native
from ..nn.block_linear import BlockProduct
from ..nn.semi_structured import SemiStructuredProduct
from ..nn.sparse_linear import LinearProduct
from ..ops._registry import on_triton, why_no_triton
from .machine import machine
from .tables import text_table

NAMESPACE = "acdc_kernels::"
NOT_KERNELS = ("acdc_kernels::planned_", "acdc_kernels::skips_")  # they call other ops, or answer for them


def info_text() -> str:
    """The whole answer as text."""
    return "\n\n".join(
        (
            f"acdc-kernels {__version__}",
            _section("Built", _built()),
            _section("This machine", _machine()),
            _section("Sparse products", _sparse_products()),
            "Kernels\n" + _indent(text_table(["op", "on the CPU", "on a CUDA GPU"], kernel_rows())),
            "\n".join(_notes()),
        )
    ).rstrip()


def kernel_rows() -> list[list[str]]:
    """For each op: its name and what runs for it on the CPU and on a CUDA GPU."""
    _native.available()  # loads the library, which registers its kernels
    names = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith(NAMESPACE))
    names = [name for name in names if not name.startswith(NOT_KERNELS)]
    return [[name.removeprefix(NAMESPACE), _kernel(name, "CPU"), _kernel(name, "CUDA")] for name in names]


def _kernel(op: str, device: str) -> str:
    if torch._C._dispatch_has_kernel_for_dispatch_key(op, device):
        if device == "CPU":
            return f"C++ ({_native.cpu_isa()})"
        return "Triton" if on_triton(op) else "CUDA"
    return "plain torch (reference)"


def _built() -> list[tuple[str, str]]:
    if not _native.available():
        return [("kernels", f"none: {_native.why_not()}")]
    facts = {key.replace("_", " "): str(value) for key, value in _native.build_info().items() if value}
    if why := facts.pop("no cuda", ""):
        facts["cuda"] += f" ({why})"
    return list(facts.items())


def _machine() -> list[tuple[str, str]]:
    facts = machine()
    if facts["gpu"]:
        gpu = f"{facts['gpu']}, CUDA {torch.version.cuda}"
    else:
        gpu = "none found" if torch.version.cuda else "not used: this torch is built without CUDA"
    return [
        ("processor", f"{facts['cpu']}, {facts['cores']} cores"),
        ("extensions", " ".join(facts["isa"]) or "unknown"),
        ("memory", f"{facts['memory_gib']} GiB"),
        ("system", str(facts["os"])),
        ("torch", f"{torch.__version__}, {torch.get_num_threads()} threads"),
        ("GPU", gpu),
    ]


def _sparse_products() -> list[tuple[str, str]]:
    """What `Sparsifier(kernels=...)` can choose from here."""
    why, why_fp16 = LinearProduct.missing(fp16=False), LinearProduct.missing(fp16=True)
    kernels = f"float32 on the CPU, unstructured and block:4x1: C++ ({_native.cpu_isa()})"
    no_gpu = "" if torch.cuda.is_available() else "torch finds no CUDA device"
    no_blocks, no_semi = BlockProduct.missing(fp16=False) or no_gpu, SemiStructuredProduct.missing(fp16=False)
    blocks = "float32, bfloat16 and float16, blocks of 32, 64 or 128: Triton"
    semi = "forwards in bfloat16 and float16: torch's semi-structured kernels"
    return [
        ("linear", f"dense, with zeros in the weights: {why}" if why else kernels),
        ("linear, GPU", f"dense, with zeros in the weights: {no_blocks}" if no_blocks else blocks),
        (
            "2:4, GPU",
            f"no: {no_semi}" if no_semi else semi,
        ),
        ("AVX512-FP16", f"no: {why_fp16}" if why_fp16 else _fp16()),
    ]


def _fp16() -> str:
    if _native.cpu_fp16() == "emulated":
        return "emulated, slowly and for tests (ACDC_CPU_FP16)"
    return 'yes: kernels="fp16" may use it'


def _notes() -> list[str]:
    notes = []
    if not _native.available():
        notes.append(f"The C++ kernels cannot run: {_native.why_not()}.")
    elif why := _native.why_no_cuda():
        notes.append(f"CUDA kernels cannot run: {why}.")
    if why := why_no_triton():
        notes.append(f"Triton kernels cannot run: {why}.")
    elif any(kernel == "Triton" for _, _, kernel in kernel_rows()):
        notes.append("Triton: compiled on the GPU's first use, for ops that have no CUDA kernel in this build.")
    return notes


def _section(title: str, rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return title + "\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
