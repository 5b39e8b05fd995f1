"""What a step costs, and when it leaves masked sectors alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import acdc_kernels as acdc

from .calls import same
from .conftest import kernels_of

MAKE = {
    "sgd": lambda params, **more: acdc.MaskedSGD(params, lr=0.01, momentum=0.9, **more),
    "adamw": lambda params, **more: acdc.MaskedAdamW(params, lr=0.01, **more),
}


def parameters(n: int = 100, size: int = 1000, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(size + i, generator=g).to(dtype).to("cuda")) for i in range(n)]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g).to(dtype).to("cuda")
    return params


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("make", "most"), [("sgd", 1), ("adamw", 2)])
def test_a_step_of_a_hundred_parameters_is_a_kernel_or_two(make, most, masked):
    params = parameters()
    optimizer = MAKE[make](params)
    optimizer.step()
    if masked:
        optimizer.masks.update(zip(params, acdc.topk_mask(params, 10000), strict=True))
    optimizer.step()
    assert 1 <= kernels_of(optimizer.step) <= most


@pytest.mark.parametrize("make", MAKE)
def test_a_step_needs_no_memory_to_speak_of(make):
    params = parameters(size=100_000)
    optimizer = MAKE[make](params)
    optimizer.masks.update(zip(params, acdc.topk_mask(params, 10000), strict=True))
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    assert torch.cuda.max_memory_allocated() - before <= 2**16
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_infinity_found_on_the_device_changes_nothing(dtype, make):
    params = parameters(5, dtype=dtype)
    optimizer = MAKE[make](params, state_dtype=torch.float32)
    optimizer.masks.update(zip(params, acdc.topk_mask(params, 100), strict=True))
    optimizer.step()
    tensors = [*params, *(t for p in params for t in optimizer.state[p].values())]
    before = [t.detach().clone() for t in tensors]
    optimizer.grad_scale = torch.tensor(4.0, device="cuda")
    for found, changed in ((1.0, False), (float("inf"), False), (0.0, True)):
        optimizer.found_inf = torch.tensor(found, device="cuda")
        optimizer.step()
        assert same([t.detach() for t in tensors], before) is not changed


def write(p: nn.Parameter) -> None:
    with torch.no_grad():
        p.add_(1.0)


# What somebody does to a parameter or its momentum between steps; it is counted, or seen by its address.
WRITES = {
    "in place": lambda optimizer, p: write(p),
    "through a view": lambda optimizer, p: p.detach()[5:].fill_(3.0),
    "other data": lambda optimizer, p: setattr(p, "data", torch.ones_like(p)),
    "its momentum": lambda optimizer, p: optimizer.state[p]["momentum_buffer"].fill_(3.0),
    "another momentum": lambda optimizer, p: optimizer.state[p].update(momentum_buffer=torch.ones_like(p)),
    "another mask": lambda optimizer, p: optimizer.masks.update({p: half(p, 1)}),
    "a side stream": lambda optimizer, p: on_a_side_stream(lambda: write(p)),
}


def half(p: nn.Parameter, seed: int = 0) -> torch.Tensor:
    """Half of the bytes of the mask are 0."""
    g = torch.Generator().manual_seed(seed)
    return (255 * torch.randint(2, ((p.numel() + 7) // 8,), generator=g, dtype=torch.uint8)).to(p.device)


def on_a_side_stream(call) -> None:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)


@pytest.mark.parametrize("what", WRITES)
def test_zeros_are_written_again_when_somebody_wrote(what):
    p = nn.Parameter(torch.randn(8192, device="cuda"))
    optimizer = acdc.MaskedSGD([p], lr=0.01, momentum=0.9)
    optimizer.masks[p] = half(p)
    for _ in range(3):
        p.grad = torch.full_like(p, torch.nan).where(~acdc.unpack_mask(half(p), p.shape), torch.ones((), device="cuda"))
        optimizer.step()
    WRITES[what](optimizer, p)
    p.grad = torch.ones_like(p)
    optimizer.step()
    pruned = ~acdc.unpack_mask(optimizer.masks[p], p.shape)
    for t in (p.detach(), optimizer.state[p]["momentum_buffer"]):
        assert not t[pruned].any()
        assert not t[pruned].signbit().any()
        assert t[~pruned].isfinite().all()


def update(params, grads, buffers, masks, lr):
    grads = [g.clamp(-1, 1) for g in grads]
    acdc.ops.masked_sgd_(params, grads, buffers, masks, lr=lr, momentum=0.9)
    acdc.ops.apply_mask_(buffers, masks)
    return acdc.topk_mask(params, 500)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_update_is_the_eager_one(backend):
    results = []
    torch._dynamo.reset()
    for function in (update, torch.compile(update, fullgraph=True, backend=backend)):
        params = [p.detach() for p in parameters(4)]
        grads, buffers = [2 * p for p in params], [p.clone() for p in params]
        masks = acdc.topk_mask(params, 900)
        for step in range(3):
            masks = function(params, grads, buffers, masks, torch.tensor(0.1 / (step + 1), device="cuda"))
        results.append([*params, *buffers, *masks])
    assert same(*results)


@pytest.mark.parametrize("make", MAKE)
def test_a_dtensor_on_one_gpu(make, tmp_path):
    """Sharded over a mesh of this process alone."""
    dist = torch.distributed
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("torch has no gloo here")
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Shard

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = DeviceMesh.from_group(dist.group.WORLD, "cuda")  # by gloo, too
        plain = [nn.Parameter(torch.randn(64, 32, device="cuda")) for _ in range(3)]
        sharded = [nn.Parameter(DTensor.from_local(p.detach().clone(), mesh, [Shard(0)])) for p in plain]
        optimizers = [MAKE[make](params) for params in (plain, sharded)]
        for params, optimizer in zip((plain, sharded), optimizers, strict=True):
            optimizer.masks.update(zip(params, acdc.topk_mask(params, 600), strict=True))
        for step in range(3):
            for p, d in zip(plain, sharded, strict=True):
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step)).to("cuda")
                d.grad = DTensor.from_local(p.grad.clone(), mesh, [Shard(0)])
            for optimizer in optimizers:
                optimizer.step()
        assert same([p.detach() for p in plain], [d.detach().to_local() for d in sharded])
    finally:
        dist.destroy_process_group()
