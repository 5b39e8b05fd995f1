"""Every CUDA op on small awkward cases, for compute-sanitizer: compute-sanitizer --tool memcheck python tests/cuda/sanitize.py

Results are compared with the CPU's, so a program that ran to its end did the work. ACDC_TEST_ALLOCATOR names
rounding_allocator.cpp as a library: each tensor then has memory of its own. ``sanitize.py cpu`` runs the cases without a GPU, ``sanitize.py cuda steps`` one
group of them. The last line has a digest of all masks and indices, which is the same wherever they were computed.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

import acdc_kernels as acdc
from acdc_kernels.ops import apply_mask_, magnitude_histogram, masked_adamw_, masked_sgd_, topk_mask_with_nan_count
from acdc_kernels.ops.dtypes import FLOAT_DTYPES
from acdc_kernels.ops.masked_sgd import cases as updates
from acdc_kernels.ops.topk_mask import cases as topk
from acdc_kernels.ops.values import cases as values
from acdc_kernels.policy.patterns import parse_pattern

FLOAT32 = torch.float32
SMALL = {FLOAT32: 4e-6, torch.float64: 1e-14, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}
Result = tuple[str, list[Tensor]]


def topk_unstructured(device: str) -> Iterator[Result]:
    for shapes, dtype in product(("scalar", "empty_among_others", "around_a_byte", "awkward"), FLOAT_DTYPES):
        weights = topk.weights(shapes, "non_finite", dtype, device=device)
        n = sum(w.numel() for w in weights)
        for keep in (0, n // 3, n, [w.numel() // 2 for w in weights]):
            bits, nans = topk_mask_with_nan_count(weights, keep)
            yield f"topk {shapes} {dtype}", [*bits, nans]
    # the sampled bracket, its miss (ties), and chunks
    for shapes, numbers, dtype in product(("bracketed", "around_a_chunk"), ("normal", "constant"), FLOAT_DTYPES):
        weights = topk.weights(shapes, numbers, dtype, device=device)
        yield f"topk {shapes} {numbers} {dtype}", acdc.topk_mask(weights, sum(w.numel() for w in weights) // 10)
    for layout in topk.LAYOUTS:
        weights = topk.weights("convolutions", "ties", FLOAT32, layout, device=device)
        yield f"topk {layout}", acdc.topk_mask(weights, 300)
        base = torch.tensor([0x3F000000], device=device)
        yield f"histogram {layout}", [magnitude_histogram(weights, base, 24, 12)]


def topk_patterns(device: str) -> Iterator[Result]:
    for pattern, shapes in product(topk.PATTERNS, ("linear", "convolutions")):
        for layout in ("contiguous", "unaligned"):
            weights = topk.pattern_weights(pattern, shapes, "non_finite", FLOAT32, layout, device=device)
            parsed = parse_pattern(pattern)
            keep = None if parsed.fixed else sum(w.numel() for w in weights) // parsed.unit // 3 * parsed.unit
            yield f"topk {pattern} {shapes} {layout}", acdc.topk_mask(weights, keep, pattern)


def mask_bits(device: str) -> Iterator[Result]:
    for n in (0, 1, 7, 8, 9, 65, 1000, 4097):
        mask = (torch.arange(n) % 3 == 0).to(device)
        bits = acdc.pack_mask(mask)
        yield f"mask bits {n}", [bits, acdc.unpack_mask(bits, (n,)), acdc.pack_mask(mask.flip(0)[::2])]


def steps(device: str) -> Iterator[Result]:
    for shapes, layout, dtype in product(("scalar", "around_a_vector", "convolutions"), updates.LAYOUTS, FLOAT_DTYPES):
        g = torch.Generator().manual_seed(0)
        drawn = [[torch.randn(s, generator=g) for s in updates.SHAPES[shapes]] for _ in range(4)]
        params, grads, first, second = ([updates.LAYOUTS[layout](t.to(dtype).to(device)) for t in ts] for ts in drawn)
        masks = [acdc.pack_mask((torch.rand(p.shape, generator=g) < 0.3).to(device)) for p in params]
        apply_mask_([*params, *first], masks * 2)
        zeros_kept = [True] * len(params)
        masked_sgd_(params, grads, first, masks, lr=0.1, momentum=0.9, weight_decay=0.1, zeros_kept=zeros_kept)
        second = [updates.LAYOUTS[layout](t.square()) for t in second]
        counts = [torch.zeros((), device=device) for _ in params]
        found = torch.zeros((), device=device)
        lr = torch.tensor(0.1, device=device)
        masked_adamw_(params, grads, first, second, [], counts, [None, *masks[1:]], lr=lr, found_inf=found)
        yield f"steps {shapes} {layout} {dtype}", [*params, *first, *second, *counts]


def topologies(device: str) -> Iterator[Result]:
    shapes = [("unstructured", s) for s in ((1, 1), (5, 0), (7, 33), (64, 65), (513, 17), (17, 513))]
    for (pattern, shape), dtype in product([*shapes, ("block:4x1", (516, 17))], FLOAT_DTYPES):
        for name in ("all kept", "all pruned", "ragged"):
            mask = values.mask(shape, name, pattern).to(device)
            weight = torch.arange(mask.numel(), dtype=torch.float32).view(shape).to(dtype).to(device)
            gathered, topology = acdc.compress(weight, acdc.pack_mask(mask), pattern)
            yield f"values {pattern} {shape} {name}", [gathered, *topology.index, acdc.decompress(gathered, topology)]


def close(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a.cpu(), b)
    return torch.allclose(a.double().cpu(), b.double(), rtol=SMALL[a.dtype], atol=SMALL[a.dtype], equal_nan=True)


GROUPS = {g.__name__: g for g in (mask_bits, topk_unstructured, topk_patterns, steps, topologies)}


def main(device: str = "cuda", *groups: str) -> None:
    if allocator := os.environ.get("ACDC_TEST_ALLOCATOR"):
        own = torch.cuda.memory.CUDAPluggableAllocator(allocator, "acdc_allocate", "acdc_free")
        torch.cuda.memory.change_current_allocator(own)
    ran, digest = 0, hashlib.sha256()
    for group in (GROUPS[name] for name in groups or GROUPS):
        for (name, ours), (_, theirs) in zip(group(device), group("cpu"), strict=True):
            if len(ours) != len(theirs) or not all(map(close, ours, theirs)):
                sys.exit(f"{name}: {device} and cpu differ")
            for t in ours:
                if not t.is_floating_point():
                    digest.update(t.cpu().numpy().tobytes())
            ran += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{ran} cases ran on {device}: {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
