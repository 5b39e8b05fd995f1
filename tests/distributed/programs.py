"""What the ranks of the distributed tests run: ``programs.py NAME RANK WORLD FOLDER``; each saves a dict to FOLDER/RANK.pt."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import acdc_kernels as acdc

# 12 updates: D2 C2 D2 C2 D2 C2
SCHEDULE = acdc.schedules.acdc(total=12, warmup=2, compressed=2, dense=2, final_dense=0, final_compressed=2)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 17), nn.Tanh(), nn.Linear(17, 9), nn.Tanh(), nn.Linear(9, 3))


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, rank: int) -> None:
    x, y = batch(step, rank)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def replicas(rank: int, world: int) -> dict:
    """DistributedDataParallel: every rank sees data of its own, and prunes the same weights."""
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8, process_group=dist.group.WORLD)
    masks = []
    for step in range(SCHEDULE.total_steps):
        update(model, optimizer, step, rank)
        masks.append(dict(sparsifier.masks))
        sparsifier.step()
    twin = sparsifier.dense_twin()
    return {
        "weights": {name: p.detach() for name, p in model.module.named_parameters()},
        "masks": masks,
        "sparsity": sparsifier.achieved_sparsity(),
        "twin": {name: p.detach() for name, p in twin.named_parameters()},
    }


def replicas_share_the_plan(rank: int, world: int) -> dict:
    """Every rank would choose otherwise; rank 0's plan is used everywhere, from before the first update on."""
    from acdc_kernels import plan
    from acdc_kernels.nn.product import DENSE, SPARSE
    from acdc_kernels.nn.sparse_linear import LinearProduct

    asked = []

    def choose(self: plan.Planner, trials: dict, previous: dict, budget: float) -> dict:
        asked.append(sorted(trials))
        kernel = SPARSE if rank == 0 else DENSE
        return {
            name: {
                product: plan.Choice(kernel, f"as rank {rank} likes it", {kernel: 1.0}) for product in trial.computed
            }
            for name, trial in trials.items()
        }

    plan.Planner.plan = choose
    LinearProduct.missing = staticmethod(lambda fp16, pattern="unstructured", device_type="cpu": None)
    results = {}
    # D2 C2 D2 C2, and C2 D2 C2, whose plan has to wait for the first update
    for name, schedule in {
        "dense first": acdc.schedules.acdc(total=8, warmup=2, compressed=2, dense=2, final_dense=0, final_compressed=2),
        "compressed first": acdc.schedules.acdc(6, 0, 2, 2, 0, 2),
    }.items():
        model = nn.parallel.DistributedDataParallel(net())
        optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
        sparsifier = acdc.Sparsifier(model, optimizer, schedule, sparsity=0.8, process_group=dist.group.WORLD)
        sparse = []
        for step in range(schedule.total_steps):
            update(model, optimizer, step, rank)
            products = [getattr(layer, "product", None) for layer in model.module]
            sparse.append(sum(product is not None and product.topology is not None for product in products))
            sparsifier.step()
        results[name] = {
            "sparse": sparse,
            "reasons": sorted({row.reason for row in sparsifier.plan()}),
            "plan": [row.to_dict() for row in sparsifier.plan()],
            "asked": len(asked),
            "weights": {key: p.detach() for key, p in model.module.named_parameters()},
        }
    return results


def a_plan_that_fails_on_rank_0(rank: int, world: int) -> dict:
    """No rank waits for another, and all of them go on when a plan can be made."""
    from acdc_kernels import plan
    from acdc_kernels.nn.sparse_linear import LinearProduct

    LinearProduct.missing = staticmethod(lambda fp16, pattern="unstructured", device_type="cpu": None)
    model = nn.parallel.DistributedDataParallel(net())
    optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = acdc.schedules.acdc(total=10, warmup=2, compressed=4, dense=2, final_dense=0, final_compressed=4)
    sparsifier = acdc.Sparsifier(model, optimizer, schedule, sparsity=0.8, process_group=dist.group.WORLD)
    working = plan.Planner.plan
    errors = []
    for step in range(4):
        if step == 1 and rank == 0:
            plan.Planner.plan = lambda *_: (_ for _ in ()).throw(MemoryError("all gone"))
        if step == 3:
            plan.Planner.plan = working
        update(model, optimizer, step, rank)
        try:
            sparsifier.step()
        except (MemoryError, RuntimeError) as error:
            errors.append(f"{type(error).__name__}: {error}")
    return {"errors": errors, "steps": sparsifier.step_count, "rows": len(sparsifier.plan())}


def replicas_of_a_group(rank: int, world: int) -> dict:
    """DistributedDataParallel over a group of one's own, which can't be pickled: the twin is the module inside."""
    group = dist.new_group([0, 1])
    model = nn.parallel.DistributedDataParallel(net(), process_group=group)
    optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1)
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8, process_group=group)
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    for _ in range(2):
        sparsifier.step()
    twin = dict(sparsifier.dense_twin().named_parameters())
    same = all(torch.equal(twin[name], p) for name, p in before.items())
    return {"same": same, "sparsity": sparsifier.achieved_sparsity()}


def replicas_that_differ(rank: int, world: int) -> dict:
    """A rank whose weights have drifted, or hold NaN, stops all ranks at the flip; they go on once it is put right."""
    model = net()
    optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1)
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8, process_group=dist.group.WORLD)
    sparsifier.step()
    errors = []
    good = model[2].weight.detach().clone()
    for bad in (1.0, float("nan")):
        if rank == 1:
            with torch.no_grad():
                model[2].weight[:2] += bad
        try:
            sparsifier.step()
        except ValueError as error:
            errors.append(str(error))
        with torch.no_grad():
            model[2].weight.copy_(good)
    before = (sparsifier.step_count, sparsifier.phase.kind, len(sparsifier.masks))
    sparsifier.step()
    return {"errors": errors, "before": before, "after": sparsifier.phase.kind}


def sharded_masks(rank: int, world: int) -> dict:
    """topk_mask over DTensors, and over plain shards of one model, in every dtype and with ties."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    wrong = []
    dtypes = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    for case in range(48):
        dtype = dtypes[case % 4]
        generator = torch.Generator().manual_seed(case)
        weights = [
            torch.randn(shape, generator=generator).to(dtype) for shape in ((7, 5), (1, 9), (16, 3), (5, 4, 2), (0, 3))
        ]
        if case % 3 == 1:
            weights = [(w * 2).round() for w in weights]
        if case % 5 == 1:
            weights[0][0, 0], weights[1][0, 3], weights[2][:2] = float("nan"), float("inf"), -0.0
        total = sum(w.numel() for w in weights)
        each = [int(torch.randint(w.numel() + 1, (), generator=generator)) for w in weights]
        spread = [distribute_tensor(w, mesh, [Shard(0)]) for w in weights]
        for keep in (0, 1, case % total, total, each):
            whole = acdc.topk_mask(weights, keep)
            mine = acdc.topk_mask(spread, keep)
            for w, bits, shard, got in zip(weights, whole, spread, mine, strict=True):
                want = distribute_tensor(acdc.unpack_mask(bits, w.shape), mesh, [Shard(0)]).to_local()
                if not torch.equal(acdc.unpack_mask(got, shard.to_local().shape), want):
                    wrong.append((case, str(keep), list(w.shape)))
        # plain tensors: the processes' lists one after another are the model
        pieces = [w.flatten() for w in weights[:3]]
        keep = case % (world * sum(p.numel() for p in pieces))
        mine = acdc.topk_mask([p * (1 + rank) for p in pieces], keep, shard_group=dist.group.WORLD)
        whole = acdc.topk_mask([p * (1 + r) for r in range(world) for p in pieces], keep)
        if not all(map(torch.equal, mine, whole[rank * 3 : rank * 3 + 3])):
            wrong.append((case, keep, "pieces"))
    return {"wrong": wrong}


def sharded_refusals(rank: int, world: int) -> dict:
    """What shards can't have is refused by the constructor; a model sharded too late, at the flip."""
    from torch.distributed.fsdp import fully_shard

    errors = {}
    for case, settings in {
        "block": {"pattern": "block:1x1"},
        "transposable": {"pattern": "2:4-transposable"},
        "some layers": {},
        "group": {"process_group": dist.group.WORLD},
        "tie rule": {"tie_rule": "reference"},
        "too late": {},
    }.items():
        model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8))
        parts = [model[0]] if case == "some layers" else [*model, model]
        if case == "too late":
            optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1)
            sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE)
        for part in parts:
            fully_shard(part)
        try:
            if case == "too late":
                for _ in range(2):
                    sparsifier.step()
            else:
                acdc.Sparsifier(model, acdc.MaskedSGD(model.parameters(), lr=0.1), SCHEDULE, **settings)
            errors[case] = "none"
        except ValueError as error:
            errors[case] = str(error)
    return errors


def refusal_of(weights: list[torch.Tensor], keep: int) -> str:
    try:
        acdc.topk_mask(weights, keep, shard_group=dist.group.WORLD)
    except ValueError as error:
        return str(error)
    return ""


def uneven_lists(rank: int, world: int) -> dict:
    """topk_mask over processes that hold different numbers of tensors, ties among them."""
    wrong = []
    for case, sizes in enumerate(([[5, 7], [3, 9, 11]], [[5, 0, 40], [3]], [[6], [4, 4]])):
        generator = torch.Generator().manual_seed(case)
        lists = [[(torch.randn(n, generator=generator) * 2).round() for n in each] for each in sizes]
        flat = [w for each in lists for w in each]
        first = sum(map(len, lists[:rank]))
        for keep in range(sum(w.numel() for w in flat) + 1):
            mine = acdc.topk_mask(lists[rank], keep, shard_group=dist.group.WORLD)
            whole = acdc.topk_mask(flat, keep)[first : first + len(lists[rank])]
            if [m.tolist() for m in mine] != [m.tolist() for m in whole]:
                wrong.append((case, keep))
    return {"wrong": wrong, "errors": [refusal_of(lists[rank], keep) for keep in (-1, 15, 10**19)]}


def sharded_memory(rank: int, world: int) -> dict:
    """The most bytes that topk_mask over shards holds beyond its outputs, and what it may hold, by kind of weights."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    mesh = init_device_mesh("cpu", (world,))
    rows = {
        "contiguous": [torch.randn(1_000_000)],
        "float64": [torch.randn(500_000, dtype=torch.float64)],
        "transposed": [torch.randn(100, 10_000).t()],
        "transposed long": [torch.randn(250_000, 4).t()],
        "every other": [torch.randn(6, 200_000)[::2], torch.randn(800_000)[::2]],
        "channels last": [torch.randn(128, 128, 8, 8).to(memory_format=torch.channels_last)],
        "many": [torch.randn(50, 100) for _ in range(100)],
    }
    acdc.topk_mask([torch.randn(100)], 10, shard_group=dist.group.WORLD)
    found = {}
    for name, weights in rows.items():
        spread = [DTensor.from_local(w, mesh, [Shard(0)]) for w in weights]
        each = [w.numel() // 10 for w in spread]
        given, keep, group = (spread, each, None) if name == "many" else (weights, 100_000, dist.group.WORLD)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            masks = acdc.topk_mask(given, keep, shard_group=group)
        held = peak = 0
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        allowed = 0.03 * sum(w.numel() * w.element_size() for w in weights) + 2**20
        found[name] = (sum(m.numel() for m in masks), peak, allowed)
    return found


def sharded_training(rank: int, world: int) -> dict:
    """FSDP2: the masks are those of the whole model, which no rank ever holds."""
    from torch.distributed.fsdp import fully_shard

    results = {}
    for name, make in {
        "sgd": lambda p: acdc.MaskedSGD(p, lr=0.1, momentum=0.9),
        "adamw": lambda p: acdc.MaskedAdamW(p, lr=0.01),
    }.items():
        whole = net()
        sharded = net()
        for layer in sharded:
            if isinstance(layer, nn.Linear):
                fully_shard(layer)
        fully_shard(sharded)
        runs = []
        for model in (whole, sharded):
            optimizer = make(model.parameters())
            runs.append((model, optimizer, acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8)))
        unlike = []
        for step in range(SCHEDULE.total_steps):
            for model, optimizer, sparsifier in runs:
                update(model, optimizer, step, 0)  # the same batch on every rank: averaging changes nothing
                sparsifier.step()
            want, got = runs[0][2].masks, runs[1][2].masks
            if list(want) != list(got):
                unlike.append((step, "names"))
            for key in want:
                p = sharded.get_parameter(key)
                rows = torch.chunk(acdc.unpack_mask(want[key], p.shape), world)
                local = acdc.unpack_mask(got[key], p.to_local().shape)
                if not torch.equal(local, rows[rank]):
                    unlike.append((step, key))
        full = {key: p.full_tensor().detach() for key, p in sharded.named_parameters()}
        error = max(float((full[key] - p).abs().max()) for key, p in whole.named_parameters())
        sparsities = [sparsifier.achieved_sparsity() for _, _, sparsifier in runs]
        state = runs[1][2].state_dict()
        with torch.no_grad():
            sharded(batch(0, rank)[0])  # leaves whole parameters in the modules
        runs[1][2].load_state_dict(state)
        try:
            runs[1][2].dense_twin()
        except RuntimeError as refusal:
            refused = str(refusal)
        results[name] = {
            "unlike": unlike,
            "error": error,
            "classes": sorted({type(m).__name__ for m in sharded.modules()}),
            "sparsities": sparsities,
            "refused": refused,
        }
    return results


if __name__ == "__main__":
    name, rank, world, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(globals()[name](rank, world), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
