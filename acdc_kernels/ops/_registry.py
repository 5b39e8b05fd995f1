"""How an op enters torch: schema, fake and reference from Python; compiled kernels add themselves beside them.

The reference is registered for every device at the lowest priority, so an op exists without a compiler; where it
stands in for a kernel, it says so once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _native

NAMESPACE = "acdc_kernels"


def _device_type(args: Sequence[Any]) -> str:
    for arg in args:
        if isinstance(arg, Tensor):
            return arg.device.type
        if isinstance(arg, (list, tuple)) and arg and isinstance(arg[0], Tensor):
            return arg[0].device.type
    return "cpu"


def register(
    name: str, schema: str, reference: Callable[..., Any], fake: Callable[..., Any], mutates: tuple[str, ...] = ()
) -> torch._ops.OpOverload:
    """Define ``acdc_kernels::name``: ``schema`` is its arguments and returns, ``mutates`` what it writes to."""

    def stand_in(*args: Any) -> Any:
        _native.warn_reference(_device_type(args))
        return reference(*args)

    op = torch.library.custom_op(f"{NAMESPACE}::{name}", stand_in, mutates_args=mutates, schema=schema)
    op.register_fake(fake)
    return getattr(torch.ops.acdc_kernels, name).default
