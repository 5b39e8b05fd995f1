"""What launching a Triton kernel needs to know of the machine and of torch's settings."""

from __future__ import annotations

import contextlib
import functools
from contextlib import AbstractContextManager

import torch
from torch import Tensor


@functools.cache
def machine(device: torch.device) -> tuple[int, tuple[int, int]]:
    """(multiprocessors, compute capability); on a CPU, where Triton's interpreter runs, of a GPU that can do all."""
    if device.type == "cpu":
        return 4, (9, 0)
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, (properties.major, properties.minor)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """A kernel is launched on the current GPU, so the one of its tensors has to be that."""
    if tensor.device.type == "cpu" or tensor.device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(tensor.device)


def arithmetic(dtype: torch.dtype) -> str:
    """The dtype's name; "tf32" for float32 where torch's setting for matrix products allows it.

    The newer of torch's two settings is read: setting the older one moves it too, and reading the older one raises
    where both were used.
    """
    if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(dtype).removeprefix("torch.")


def in_rows(tensor: Tensor, rows: int, width: int) -> Tensor:
    """As a matrix whose rows lie one element after another, however far apart; a copy only where it has to be."""
    flat = tensor.reshape(rows, width)
    if rows == 1:
        flat = flat.view(width)[None] if flat.stride(1) == 1 else flat
    return flat if flat.stride(1) == 1 else flat.contiguous()


def aligned(rows: Tensor) -> Tensor:
    """A matrix that the copy engine can read: base and row stride are multiples of 16 bytes."""
    if rows.data_ptr() % 16 or rows.stride(0) * rows.element_size() % 16 or rows.stride(0) < rows.shape[1]:
        return rows.clone(memory_format=torch.contiguous_format)
    return rows
