"""Every snippet in the README and the docs runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import acdc_kernels as acdc

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(*languages: str) -> list:
    """(page, text) of every fenced block in one of the languages, in order."""
    found = []
    for page in PAGES:
        for i, (language, text) in enumerate(FENCE.findall(page.read_text())):
            if language in languages:
                found.append(pytest.param(text, id=f"{page.name}-{i}"))
    return found


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


def setting() -> dict:
    """What a snippet may take as given."""
    torch.manual_seed(0)
    model = Net()
    optimizer = acdc.MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)
    loader = [(torch.randn(6, 4, 5, 5), torch.randint(4, (6,))) for _ in range(4)]
    return {
        "acdc": acdc,
        "torch": torch,
        "model": model,
        "optimizer": optimizer,
        "loader": loader,
        "loss_fn": nn.CrossEntropyLoss(),
    }


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Snippets write to a folder of their own, and compile anew."""
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("text", blocks("python"))
def test_python(text):
    names = setting()
    exec(compile(text, "snippet", "exec"), names)
    trained = names["model"]
    assert all(bool(p.isfinite().all()) for p in trained.parameters())


def test_there_are_snippets():
    assert len(blocks("python")) >= 12
    languages = {language for page in PAGES for language, _ in FENCE.findall(page.read_text())}
    assert languages <= {"python", "sh", ""}  # a language that no test runs
