"""What a thousand calls add to the memory of this process, one line of JSON a case: ``python heap_growth.py LAYOUT``.

LAYOUT seeds what lies in the heap beforehand: small blocks, of which every third is free again.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import acdc_kernels as acdc

CALLS = 1000
WIDTH = SAMPLES = 512  # so that every output has a mebibyte


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def grown(call: Callable[[], object]) -> int:
    for _ in range(50):
        call()
    before = resident()
    for _ in range(CALLS):
        call()
    return resident() - before


def cases() -> dict[str, Callable[[], object]]:
    ops = torch.ops.acdc_kernels
    weight, x = torch.randn(WIDTH, WIDTH), torch.randn(SAMPLES, WIDTH)
    bits = acdc.topk_mask([weight], WIDTH * WIDTH // 10)[0]
    values, topology = acdc.compress(weight, bits)
    where = (list(topology.index), list(topology.meta), topology.format)
    layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 10))
    optimizer = acdc.MaskedSGD(layers.parameters(), lr=0.01, momentum=0.9)
    schedule = acdc.schedules.acdc(2 * CALLS, 0, 2 * CALLS, 1, 0, 0)
    sparsifier = acdc.Sparsifier(layers, optimizer, schedule, sparsity=0.9, kernels="sparse")

    def step() -> None:
        optimizer.zero_grad()
        layers(x).square().mean().backward()
        optimizer.step()
        sparsifier.step()

    return {
        "sparse_linear": lambda: acdc.sparse_linear(x, values, topology),
        "forward that saves": lambda: ops.sparse_linear(x, values, *where, None, True, False),
        "backward": lambda: ops.sparse_linear_backward(x, x, False, values, *where, True, True),
        "gather_values": lambda: ops.gather_values(weight, *where),
        "scatter_values": lambda: ops.scatter_values(values, *where),
        "training": torch.enable_grad()(step),
    }


if __name__ == "__main__":
    chance = random.Random(sys.argv[1])
    held = [bytearray(chance.randrange(16, 300)) for _ in range(10_000 * int(sys.argv[1]))]
    held[::3] = [bytearray()] * len(held[::3])
    torch.set_num_threads(1)
    with torch.no_grad():
        for name, call in cases().items():
            print(json.dumps({"case": name, "grown": grown(call)}), flush=True)
