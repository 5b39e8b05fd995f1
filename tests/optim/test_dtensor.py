"""DTensor parameters on a mesh of one rank, in a process of its own: it sets up torch.distributed."""

import os
import subprocess
import sys

import pytest
import torch

SCRIPT = """
import copy, os, sys
import torch
import acdc_kernels as acdc

assert "torch.distributed.tensor" not in sys.modules, "importing it takes seconds"
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

torch.set_num_threads(1)
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
MAKE = {
    "sgd": lambda ps, **more: acdc.MaskedSGD(ps, lr=0.1, momentum=0.9, **more),
    "adamw": lambda ps, **more: acdc.MaskedAdamW(ps, lr=0.1, amsgrad=True, **more),
}[sys.argv[1]]
for dtype, state_dtype in ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)):
    torch.manual_seed(0)
    start = [torch.randn(9, 5).to(dtype), torch.randn(9).to(dtype)]
    plain = [nn.Parameter(t.clone()) for t in start]
    spread = [nn.Parameter(distribute_tensor(t.clone(), mesh, [Shard(0)])) for t in start]
    a, b = MAKE(plain, state_dtype=state_dtype), MAKE(spread, state_dtype=state_dtype)
    bits = acdc.pack_mask(torch.rand(9, 5) < 0.5)
    for step in range(4):
        if step == 2:
            a.masks[plain[0]] = bits
            b.masks[spread[0]] = bits
        grads = [torch.randn(9, 5).to(dtype), torch.randn(9).to(dtype)]
        for p, q, g in zip(plain, spread, grads):
            p.grad = g
            q.grad = distribute_tensor(g, mesh, [Shard(0)])
        if step == 1:  # laid out otherwise than its parameter
            spread[0].grad = distribute_tensor(grads[0], mesh, [Replicate()])
        before = spread[0]._version
        a.step()
        b.step()
        assert spread[0]._version > before
    assert all(torch.equal(p, q.full_tensor()) for p, q in zip(plain, spread))
    fresh = MAKE(spread, state_dtype=state_dtype)
    fresh.load_state_dict(copy.deepcopy(b.state_dict()))
    assert torch.equal(fresh.masks[spread[0]], bits)
    for name, value in a.state[plain[0]].items():
        got = fresh.state[spread[0]][name]
        assert got.dtype == value.dtype and isinstance(got, DTensor) == (name != "step")
        assert torch.equal(got.full_tensor() if isinstance(got, DTensor) else got, value)
    fresh.reset_momentum()
    assert not any((t.full_tensor() if isinstance(t, DTensor) else t).any() for t in fresh.state[spread[0]].values())
    try:
        b.masks[spread[0]] = bits[:2]
        raise SystemExit("a short mask was taken")
    except ValueError as error:
        assert "must have shape [6]" in str(error)
dist.destroy_process_group()
print("passed")
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built without torch.distributed")
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_shards_of_one_rank_are_updated_as_plain_tensors(name):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert run.stdout.strip().endswith("passed")
