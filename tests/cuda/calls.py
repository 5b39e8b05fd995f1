"""One call of every op that has CUDA kernels, with inputs that can be put in place later and results that can be compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import acdc_kernels as acdc
from acdc_kernels.ops import apply_mask_, magnitude_histogram, masked_adamw_, masked_sgd_, topk_mask_with_nan_count

SHAPES = ((512, 516), (64, 64, 3, 3), (36,), (4, 8))
MATRICES = (SHAPES[0], SHAPES[1], SHAPES[3])


@dataclass
class Call:
    """``run()`` reads ``inputs`` and returns all that it wrote; a second run may start from other inputs."""

    inputs: list[Tensor]
    run: Callable[[], list[Tensor]]


def randoms(seed: int, device: str, shapes=SHAPES, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Normal numbers; with seed 2, so many ties that a sampled bracket holds too many."""
    g = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=g) for shape in shapes]
    return [(t.sign() if seed == 2 else t).to(dtype).to(device) for t in drawn]


def masks(seed: int, device: str, shapes=SHAPES) -> list[Tensor]:
    """A tenth is kept, and as many for every seed."""
    g = torch.Generator().manual_seed(100 + seed)
    kept = []
    for shape in shapes:
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.view(-1)[torch.randperm(mask.numel(), generator=g)[: mask.numel() // 10]] = True
        kept.append(mask.to(device))
    return kept


def topk(seed: int, device: str, dtype: torch.dtype, keep: int | list[int] | None, pattern: str) -> Call:
    weights = randoms(seed, device, SHAPES if pattern == "unstructured" else MATRICES, dtype)
    weights[0][3, 3] = torch.nan

    def run() -> list[Tensor]:
        bits, nan_count = topk_mask_with_nan_count(weights, keep, pattern)
        return [*bits, nan_count]

    return Call(weights, run)


def histogram(seed: int, device: str) -> Call:
    weights, base = randoms(seed, device), torch.tensor([0x3F000000], device=device)
    return Call([*weights, base], lambda: [magnitude_histogram(weights, base, 24, 16)])


def pack(seed: int, device: str) -> Call:
    kept = masks(seed, device)
    return Call(kept, lambda: [acdc.pack_mask(mask) for mask in kept])


def unpack(seed: int, device: str) -> Call:
    bits = [acdc.pack_mask(mask) for mask in masks(seed, device)]
    return Call(bits, lambda: [acdc.unpack_mask(b, shape) for b, shape in zip(bits, SHAPES, strict=True)])


def apply(seed: int, device: str) -> Call:
    tensors, bits = randoms(seed, device), [acdc.pack_mask(mask) for mask in masks(seed, device)]

    def run() -> list[Tensor]:
        apply_mask_(tensors, bits)
        return tensors

    return Call([*tensors, *bits], run)


def scalars(seed: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """lr, grad_scale and found_inf, which seed 1 sets."""
    return tuple(torch.tensor(value, device=device) for value in (0.1 + seed, 64.0, float(seed == 1)))


def sgd(seed: int, device: str, dtype: torch.dtype = torch.float32) -> Call:
    params, grads = (randoms(seed + 10 * k, device, dtype=dtype) for k in range(2))
    buffers, bits = randoms(seed + 20, device), [acdc.pack_mask(mask) for mask in masks(seed, device)]
    buffers = [b.to(dtype) if dtype == torch.float64 else b for b in buffers]
    lr, scale, found_inf = scalars(seed, device)

    def run() -> list[Tensor]:
        given = {"grad_scale": scale, "found_inf": found_inf, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
        masked_sgd_(params, grads, buffers, [*bits[:-1], None], lr=lr, **given)
        return [*params, *buffers]

    return Call([*params, *grads, *buffers, *bits, lr, scale, found_inf], run)


def adamw(seed: int, device: str, dtype: torch.dtype = torch.float32) -> Call:
    params, grads = (randoms(seed + 10 * k, device, dtype=dtype) for k in range(2))
    avgs, squares = randoms(seed + 20, device), [t.square() for t in randoms(seed + 30, device)]
    largest = [2 * t for t in squares]
    steps, bits = [torch.zeros((), device=device) for _ in params], [acdc.pack_mask(m) for m in masks(seed, device)]
    lr, scale, found_inf = scalars(seed, device)

    def run() -> list[Tensor]:
        given = {"grad_scale": scale, "found_inf": found_inf, "amsgrad": True}
        masked_adamw_(params, grads, avgs, squares, largest, steps, [*bits[:-1], None], lr=lr, **given)
        return [*params, *avgs, *squares, *largest, *steps]

    return Call([*params, *grads, *avgs, *squares, *largest, *steps, *bits, lr, scale, found_inf], run)


def build(seed: int, device: str) -> Call:
    bits = acdc.pack_mask(masks(seed, device)[0])
    meta = acdc.compress(torch.zeros(SHAPES[0], device=device), bits)[1].meta
    return Call([bits], lambda: torch.ops.acdc_kernels.build_bundles(bits, meta, "bundles"))


def values(seed: int, device: str, pattern: str, dtype: torch.dtype = torch.float32) -> Call:
    weight = randoms(seed, device, dtype=dtype)[0]
    kept = masks(0, device, ((SHAPES[0][0] // 4, SHAPES[0][1]),))[0].repeat_interleave(4, 0)
    topology = acdc.compress(weight, acdc.pack_mask(kept), pattern)[1]

    def run() -> list[Tensor]:
        gathered = acdc.compress(weight, topology)[0]
        return [gathered, acdc.decompress(2 * gathered, topology)]

    return Call([weight], run)


F32, BF16 = torch.float32, torch.bfloat16
# name -> (seed, device) -> Call. Every dtype, layout and option is the conformance suite's.
CALLS: dict[str, Callable[[int, str], Call]] = {
    "topk": lambda seed, device: topk(seed, device, F32, 30000, "unstructured"),
    "topk, 16 bits": lambda seed, device: topk(seed, device, BF16, 30000, "unstructured"),
    "topk, a budget each": lambda seed, device: topk(seed, device, F32, [9000, 1, 0, 32], "unstructured"),
    "topk, 2:4": lambda seed, device: topk(seed, device, F32, None, "2:4"),
    "topk, transposable": lambda seed, device: topk(seed, device, F32, None, "2:4-transposable"),
    "topk, blocks": lambda seed, device: topk(seed, device, F32, 16 * 1000, "block:4x4"),
    "histogram": histogram,
    "pack": pack,
    "unpack": unpack,
    "apply": apply,
    "sgd": sgd,
    "sgd, 16 bits": lambda seed, device: sgd(seed, device, BF16),
    "adamw": adamw,
    "adamw, 16 bits": lambda seed, device: adamw(seed, device, BF16),
    "build": build,
    "values": lambda seed, device: values(seed, device, "unstructured"),
    "values of blocks, 16 bits": lambda seed, device: values(seed, device, "block:4x1", BF16),
}


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Bits and all: NaN equals itself, and +0.0 is not -0.0."""
    return len(ours) == len(theirs) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(as_bytes(a), as_bytes(b))
        for a, b in zip(ours, theirs, strict=True)
    )


def as_bytes(t: Tensor) -> Tensor:
    return t.cpu().contiguous().reshape(-1).view(torch.uint8)
