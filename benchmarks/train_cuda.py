"""`bench train --device cuda`: whole training steps under large blocks, dense and compressed.

A step is zero_grad, forward, mean squared error, backward, the optimizer's and the sparsifier's step, learning rate 0.
Ours is the compressed step as AC/DC training takes it (masked optimizer, Sparsifier with kernels="auto"), against the
dense step of the same training and torch's fused optimizer on the plain model: eager, and the models compiled by
torch.compile. `step_ratio` is by the device's time; `eager_step_ratio`, `graph_step_ratio` by those. `flop_ratio` is
what counting gives, and `saving_share` how much of that saving the step has.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acdc_kernels import MaskedAdamW, MaskedSGD, Sparsifier, schedules
from acdc_kernels.ops.block_linear import contract

from . import cuda_ceilings, cuda_timing, layers
from .cuda_device import Call
from .cuda_timing import Ceiling, Gpu, rounded
from .harness import Budget, Row, let_go

OP, BACKEND = contract.block_linear_op, "triton"
DENSE, AGAIN = "dense step of the same training", "ours, entered twice (noise)"
TARGET, STRETCH = 0.40, 0.30  # step ratio of the stack in bfloat16 at 90% in blocks of 128, on an H200
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.0, "momentum": 0.9, "weight_decay": 5e-4},
    "AdamW": {"lr": 0.0, "weight_decay": 1e-2, "capturable": True},
}

NO_TRAFFIC = ("moved_bytes", "ours_gb_per_s", "of_copy")  # nobody has counted a step's
SAID = {
    "step_ratio": "device", "eager_step_ratio": "eager", "graph_step_ratio": "graph", "flop_ratio": "by counting",
    "saving_share": "of that saving",
}  # fmt: skip

ceilings, ceilings_line = cuda_ceilings.ceilings, cuda_ceilings.line


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.inputs(x).unflatten(-1, (3, self.heads, -1)).transpose(-4, -2).unbind(-3)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(mixed.transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and beside what it is added to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.perceptron(self.norms[1](x))


@dataclass(frozen=True)
class Case:
    """A stack of linear layers, or a transformer if there are heads; `autocast`: of float32 weights to bfloat16."""

    width: int
    depth: int
    batch: tuple[int, ...]  # samples, or sequences and their length
    pattern: str
    sparsity: float = 0.9
    heads: int = 0
    optimizer: str = "SGD"
    autocast: bool = False
    compiled: bool = True

    @property
    def name(self) -> str:
        kind = "transformer" if self.heads else "stack"
        shape = f"{self.depth} layers of {self.width}, batch {'x'.join(map(str, self.batch))}"
        return f"{kind}, {shape}, {self.optimizer}{', autocast' * self.autocast}"

    def model(self, device: str) -> nn.Module:
        torch.manual_seed(0)
        with torch.device(device):
            if self.heads:
                model = nn.Sequential(*(Block(self.width, self.heads) for _ in range(self.depth)))
            else:
                parts = [part for _ in range(self.depth) for part in (nn.Linear(self.width, self.width), nn.ReLU())]
                model = nn.Sequential(*parts[:-1])
        return model if self.autocast else model.bfloat16()

    def data(self, device: str) -> tuple[Tensor, Tensor]:
        dtype = torch.float32 if self.autocast else torch.bfloat16
        return tuple(torch.randn(*self.batch, self.width, device=device).to(dtype) for _ in range(2))


TRANSFORMER = {"width": 1024, "depth": 4, "batch": (16, 512), "heads": 16, "optimizer": "AdamW"}
QUICK = (
    Case(4096, 4, (8192,), "block:128x128", compiled=False),
    Case(4096, 4, (8192,), "block:64x64", compiled=False),
    Case(**TRANSFORMER, pattern="block:64x64", autocast=True, compiled=False),
)
CASES = (
    Case(4096, 4, (8192,), "block:128x128"),
    Case(4096, 4, (8192,), "block:64x64"),
    Case(**TRANSFORMER, pattern="block:64x64", autocast=True),
    Case(**TRANSFORMER, pattern="block:64x64", compiled=False),
    Case(**TRANSFORMER, pattern="block:128x128", autocast=True, compiled=False),
    Case(4096, 4, (8192,), "block:128x128", 0.95, compiled=False),
    Case(4096, 4, (2048,), "block:128x128", compiled=False),
)


@dataclass
class Training:
    """A model in training, whose step can be made by the model itself or by what torch.compile makes of it."""

    case: Case
    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: tuple[Tensor, Tensor]
    sparsifier: Sparsifier | None = None

    def loss(self, model: nn.Module) -> Tensor:
        x, y = self.data
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.case.autocast):
            return nn.functional.mse_loss(model(x), y)

    def step(self, compiled: bool = False) -> Call:
        model = torch.compile(self.model, fullgraph=True) if compiled else self.model

        def call() -> None:
            self.optimizer.zero_grad()
            self.loss(model).backward()
            self.optimizer.step()
            if self.sparsifier is not None:
                self.sparsifier.step()

        return call

    def flops(self) -> int:
        with FlopCounterMode(display=False) as counted:
            self.step()()
        return counted.get_total_flops()


def training(case: Case, device: str, data: tuple[Tensor, Tensor], phase: str) -> Training:
    """In a "compressed" or "dense" phase of AC/DC training; or "fused", without, by torch's fused optimizer."""
    model, options = case.model(device), OPTIONS[case.optimizer]
    if phase == "fused":
        return Training(
            case, model, getattr(torch.optim, case.optimizer)(model.parameters(), fused=True, **options), data
        )
    masked: type[torch.optim.Optimizer] = {"SGD": MaskedSGD, "AdamW": MaskedAdamW}[case.optimizer]
    made = Training(case, model, masked(model.parameters(), **options), data)
    schedule = schedules.dense(total=layers.LONG)
    if phase == "compressed":
        schedule = schedules.acdc(
            total=layers.LONG, warmup=2, compressed=1, dense=1, final_dense=0, final_compressed=layers.LONG - 2
        )
    made.sparsifier = Sparsifier(model, made.optimizer, schedule, sparsity=case.sparsity, pattern=case.pattern)
    for _ in range(2):  # the plan learns the shapes from them
        made.step()()
    if phase == "compressed" and not made.sparsifier.plan():
        raise RuntimeError(f"bench train: {case.name} must have a plan by now, got none")
    return made


def measure(case: Case, gpu: Gpu, limit: Ceiling, budget: Budget, backend: str) -> Iterator[list[Row]]:
    """The rows of one case: eager steps, then, if it says so, those of compiled models."""
    let_go()
    with layers.fresh_plans():
        data = case.data(gpu.device)
        trainings = {phase: training(case, gpu.device, data, phase) for phase in ("compressed", "dense", "fused")}
    flops = {phase: each.flops() for phase, each in trainings.items()}
    sparsifier = trainings["compressed"].sparsifier
    assert sparsifier is not None
    facts = {
        "op": "train", "case": f"{case.name}, step", "pattern": case.pattern, "sparsity": case.sparsity,
        "dtype": "bfloat16", "threads": 1, "device": "cuda", "backend": backend, "compiled": False,
        "plan": [[each.layer, each.product, each.kernel] for each in sparsifier.plan()],
        "planning_s": rounded(sparsifier.planning_seconds), "compiling_s": rounded(sparsifier.compiling_seconds),
        "flop_ratio": rounded(flops["compressed"] / flops["dense"]),
    }  # fmt: skip
    yield _against(case, gpu, limit, budget, {phase: each.step() for phase, each in trainings.items()}, facts)
    if case.compiled:
        calls = _compiled(trainings)
        facts |= {"case": f"{case.name}, compiled step", "compiled": True}
        if "compressed" in calls and "dense" in calls:
            yield _against(case, gpu, limit, budget, calls, facts)


def _compiled(trainings: dict[str, Training]) -> dict[str, Call]:
    """Less those that torch can't compile here, once stderr has been told."""
    torch.compiler.reset()
    calls = {}
    for phase, each in trainings.items():
        calls[phase] = each.step(compiled=True)
        try:
            calls[phase]()
        except Exception as error:  # of Dynamo, Inductor or Triton
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            print(f"bench train: the compiled {phase} step is left out: {why}", file=sys.stderr)
            del calls[phase]
    return calls


def _against(
    case: Case, gpu: Gpu, limit: Ceiling, budget: Budget, steps: dict[str, Call], facts: dict[str, Any]
) -> list[Row]:
    calls = {"ours": steps["compressed"], DENSE: steps["dense"]}
    if "fused" in steps:
        calls[f"torch {case.optimizer} fused"] = steps["fused"]
    calls[AGAIN] = steps["compressed"]
    not_captured = {}
    if facts["backend"] == "reference":
        not_captured = dict.fromkeys(("ours", AGAIN), "the plain torch reference stands in for kernels")
    group = cuda_timing.compare(gpu, limit, calls, not_captured, budget, moved_bytes=0, facts=facts)
    first = group[0]
    ratios = {
        name: rounded(first[f"ours_{basis}ms"] / first[f"peer_{basis}ms"])
        for name, basis in (("step_ratio", "device_"), ("eager_step_ratio", ""), ("graph_step_ratio", "graph_"))
        if first.get(f"ours_{basis}ms") and first.get(f"peer_{basis}ms")
    }
    if "step_ratio" in ratios and facts["flop_ratio"] < 1:
        ratios["saving_share"] = rounded((1 - ratios["step_ratio"]) / (1 - facts["flop_ratio"]))
    return [{key: value for key, value in row.items() if key not in NO_TRAFFIC} | ratios for row in group]


def summary(all_rows: Sequence[Row]) -> str:
    """Compressed step / dense step, by device, host and graph, and as counted; beside the target where there is one."""
    goal = f"{CASES[0].name}, step", CASES[0].pattern, CASES[0].sparsity
    lines = ["step ratio: compressed step / dense step, optimizer included"]
    for row in all_rows:
        if row["peer"] != DENSE:
            continue
        said = [f"{row[key]:.3f} {by}" for key, by in SAID.items() if key in row]
        here = row["case"], row["pattern"], row["sparsity"]
        target = f"  (target {TARGET}, stretch {STRETCH} on an H200)" if here == goal else ""
        lines.append(f"  {row['case']}, {row['sparsity']:.0%} {row['pattern']}: {', '.join(said)}{target}")
    return "\n".join(lines)
