"""How an op enters torch: schema, fake and reference from Python; compiled kernels add themselves beside them.

The reference is registered for every device at the lowest priority, so an op exists without a compiler; where it
stands in for a kernel, it says so once. On a GPU an op without a compiled kernel gets its Triton kernel, if it has one.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .. import _native

NAMESPACE = "acdc_kernels"

_triton_kernels: dict[torch._ops.OpOverload, tuple[str, str]] = {}  # op -> its room, and a function of triton.py there
_on_triton: set[str] = set()  # names of the ops whose Triton kernel is registered


def _device_type(args: Sequence[Any]) -> str:
    for arg in args:
        if isinstance(arg, Tensor):
            return arg.device.type
        if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor):
            return arg[0].device.type
    return "cpu"


def register(
    name: str,
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    mutates: tuple[str, ...] = (),
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    flops: Callable[..., int] | None = None,
    raw_flops: Callable[..., int] | None = None,
    composed: bool = False,
    triton: tuple[str, str] | None = None,
) -> torch._ops.OpOverload:
    """Define ``acdc_kernels::name``: ``schema`` is its arguments and returns, ``mutates`` what it writes to.

    ``backward`` and ``setup_context`` are its gradient, as ``torch.library.register_autograd`` takes them; ``flops``
    its count from the arguments with a shape for every tensor, for ``torch.utils.flop_counter``; ``raw_flops`` is given
    the tensors. A ``composed`` op calls other ops: its "reference" stands in for no kernel. ``triton`` names a room and
    the function in its ``triton.py`` that takes the op's arguments on a GPU.
    """

    def stand_in(*args: Any) -> Any:
        if not composed:
            _native.warn_reference(_device_type(args), name)
        return reference(*args)

    op = torch.library.custom_op(f"{NAMESPACE}::{name}", stand_in, mutates_args=mutates, schema=schema)
    op.register_fake(fake)
    if backward is not None:
        op.register_autograd(backward, setup_context=setup_context)
    packet = getattr(torch.ops.acdc_kernels, name)
    formula = flops or raw_flops
    if formula is not None and packet not in flop_registry:  # registering twice raises, and modules can be reloaded
        register_flop_formula(packet, get_raw=formula is raw_flops)(formula)
    if triton is not None:
        _triton_kernels[packet.default] = triton
    return packet.default


def why_no_triton() -> str:
    """Why Triton kernels can't run here; empty where they can, if there is a GPU."""
    if not torch.version.cuda:
        return f"torch {torch.__version__} is built without CUDA"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return _no_compiler()


@functools.cache
def _no_compiler() -> str:
    """Why Triton can't compile the bit of C that it launches kernels by; empty if it can."""
    if not any(map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))):
        return "Triton finds no C compiler: no gcc, no clang, and none that CC names"
    scheme = sysconfig.get_default_scheme()
    include = sysconfig.get_path("include", "posix_prefix" if scheme == "posix_local" else scheme)  # as Triton looks
    header = os.path.join(include, "Python.h")
    return "" if os.path.exists(header) else f"Triton needs Python's headers, but there is no {header}"


def triton_function(room: str, name: str) -> Callable[..., Any]:
    """A function of a room's ``triton.py``, which is imported only now: importing Triton takes a second."""
    return getattr(importlib.import_module(f"{room}.triton"), name)


def register_triton() -> None:
    """Gives every op that has no compiled kernel for a GPU its Triton kernel; called once those are loaded."""
    if why_no_triton():
        return
    for op, (room, name) in _triton_kernels.items():
        if not has_kernel(op, "cuda"):
            _library.impl(op._schema.name, _later(room, name), "CUDA")
            _on_triton.add(op._schema.name)


def on_triton(op_name: str) -> bool:
    """Whether a Triton kernel runs for ``acdc_kernels::...`` on a GPU."""
    return op_name in _on_triton


def _later(room: str, name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return triton_function(room, name)(*args)

    return run


_library = torch.library.Library(NAMESPACE, "IMPL")


def has_kernel(op: torch._ops.OpOverload, device_type: str) -> bool:
    """Whether a kernel stands beside the reference of ``op`` on this kind of device: a compiled one, or in Triton."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device_type)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(op._schema.name, key)
