"""Every Python snippet in the README and the docs runs as it stands."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import acdc_kernels as acdc


class Net(nn.Module):
    """A small model with the parts that snippets name: a head, blocks with a proj, a grouped convolution, batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.blocks = nn.ModuleList(nn.ModuleDict({"up": nn.Linear(8, 16), "proj": nn.Linear(16, 8)}) for _ in range(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.depth(self.norm(self.stem(x)).relu()).mean((2, 3))
        for block in self.blocks:
            x = x + block["proj"](block["up"](x).relu())
        return self.head(x)


def setting(text: str) -> dict:
    """What a snippet may take as given: model, loader, loss_fn; optimizer and sparsifier, unless it makes them."""
    torch.manual_seed(0)
    model = Net()
    loader = [(torch.randn(6, 4, 5, 5), torch.randint(4, (6,))) for _ in range(4)]
    names = {"acdc": acdc, "torch": torch, "model": model, "loader": loader, "loss_fn": nn.CrossEntropyLoss()}
    if "optimizer = " not in text:
        names["optimizer"] = acdc.MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = acdc.schedules.acdc(total=8, warmup=2, compressed=1, dense=1, final_dense=1, final_compressed=1)
        names["sparsifier"] = acdc.Sparsifier(model, names["optimizer"], schedule)
    return names


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Snippets write to a folder of their own, and compile anew."""
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_python(python):
    names = setting(python)
    exec(compile(python, "snippet", "exec"), names)
    assert all(bool(p.isfinite().all()) for p in names["model"].parameters())


def test_there_is_no_language_that_no_test_runs(languages):
    assert languages == {"python", "sh", ""}
