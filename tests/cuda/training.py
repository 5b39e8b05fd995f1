"""Training of layers on a GPU, for tests of what computes them."""

from __future__ import annotations

import torch
from torch import nn

import acdc_kernels as acdc

SCHEDULE = acdc.schedules.acdc(total=400, warmup=0, compressed=200, dense=100, final_dense=0, final_compressed=100)
KINDS = {  # dtype of the parameters; autocast's
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "float16": (torch.float16, None),
    "autocast": (torch.float32, torch.bfloat16),
}
NEAR = {"float32": 2e-3, "bfloat16": 3e-2, "float16": 5e-3, "autocast": 3e-2}


class Run:
    """Training of two layers on the same batch, compressed from the first step."""

    def __init__(
        self,
        kind="bfloat16",
        kernels="sparse",
        pattern="block:64x64",
        width=512,
        samples=256,
        compiled=False,
        sparsity=0.75,
    ):
        torch.manual_seed(0)
        self.dtype, self.low = KINDS[kind]
        self.model = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width)).to("cuda", self.dtype)
        self.optimizer = acdc.MaskedSGD(self.model.parameters(), lr=0.01, momentum=0.9)
        self.sparsifier = acdc.Sparsifier(
            self.model, self.optimizer, SCHEDULE, sparsity=sparsity, pattern=pattern, kernels=kernels
        )
        self.forward = torch.compile(self.model, fullgraph=True) if compiled else self.model
        self.x = torch.randn(samples, width, device="cuda", dtype=self.dtype, requires_grad=True)
        self.y = torch.randn(samples, width, device="cuda")

    def loss(self):
        with torch.autocast("cuda", dtype=self.low, enabled=self.low is not None):
            out = self.forward(self.x)
        return (out.float() - self.y).square().mean()

    def update(self):
        self.optimizer.zero_grad(set_to_none=False)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def train(self, updates):
        for _ in range(updates):
            self.update()
            self.sparsifier.step()
        return self

    def kernels(self):
        return {row.kernel for row in self.sparsifier.plan()}


def near(one: Run, other: Run, kind: str) -> None:
    """The weights of both, relative to the other's."""
    for p, q in zip(one.model.parameters(), other.model.parameters(), strict=True):
        difference = (p.double() - q.double()).norm() / q.double().norm()
        assert difference < NEAR[kind], f"{kind}: {difference}"
