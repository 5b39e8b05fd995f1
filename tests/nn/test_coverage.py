"""What each module type gets, and that the table in the docs says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from acdc_kernels.nn import COVERAGE, find_weights

DOCS = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4)
        self.head.weight = self.embed.weight


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, 5, 3))
        self.scale = nn.Parameter(torch.zeros(3))


def conv1d():
    """As transformers defines it, so that no transformers are needed here."""
    cls = type("Conv1D", (nn.Module,), {"__module__": "transformers.pytorch_utils"})
    layer = cls()
    layer.weight = nn.Parameter(torch.zeros(3, 6))
    return layer


MODELS = {
    # {parameter: (treatment, input first, why not)}
    "linear": (lambda: nn.Linear(2, 3), {"weight": ("sparse", False, None)}),
    "conv1d": (lambda: nn.Conv1d(2, 3, 1), {"weight": ("masked-dense", False, None)}),
    "conv2d": (lambda: nn.Conv2d(2, 3, 1), {"weight": ("sparse", False, None)}),
    "grouped conv2d": (lambda: nn.Conv2d(4, 4, 1, groups=2), {"weight": ("sparse", False, None)}),
    "conv3d": (lambda: nn.Conv3d(2, 3, 1), {"weight": ("masked-dense", False, None)}),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), {"weight": ("masked-dense", False, None)}),
    "one channel is not depthwise": (lambda: nn.Conv2d(1, 8, 3), {"weight": ("sparse", False, None)}),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 1), {"weight": ("masked-dense", True, None)}),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2),
        {"in_proj_weight": ("masked-dense", False, None), "out_proj.weight": ("masked-dense", False, None)},
    ),
    "attention of three widths": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        {
            "q_proj_weight": ("masked-dense", False, None),
            "k_proj_weight": ("masked-dense", False, None),
            "v_proj_weight": ("masked-dense", False, None),
            "out_proj.weight": ("masked-dense", False, None),
        },
    ),
    "Hugging Face's Conv1D": (conv1d, {"weight": ("masked-dense", True, None)}),
    "tied to an embedding": (Tied, {"embed.weight": ("masked-dense", False, None)}),
    "embedding": (lambda: nn.Embedding(4, 3), {"weight": ("dense", False, "a lookup, not a product")}),
    "lstm": (
        lambda: nn.LSTM(2, 3),
        {f"weight_{kind}_l0": ("dense", False, "recurrent weights are not covered") for kind in ("ih", "hh")},
    ),
    "cell": (
        lambda: nn.GRUCell(2, 3),
        {f"weight_{kind}": ("dense", False, "recurrent weights are not covered") for kind in ("ih", "hh")},
    ),
    "bilinear": (lambda: nn.Bilinear(2, 2, 2), {"weight": ("dense", False, "a product of two inputs")}),
    "normalisation": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.LayerNorm((2, 2)), nn.RMSNorm((2, 2))), {}),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(2, 2)),
        {"weight": ("sparse", False, "computed, not a parameter")},
    ),
    "its own parameters": (
        Positions,
        {"table": ("dense", False, "not the weight of a Linear or Conv layer")},
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_treatment(case):
    make, expected = MODELS[case]
    model = make()
    found = find_weights(model, list(model.parameters()))
    assert {w.name: (w.treatment, w.input_first, w.unfit) for w in found} == expected


def test_the_docs_show_the_table():
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", DOCS.read_text(), re.MULTILINE)[1:]
    assert rows == [(row.modules, row.treatment, row.why) for row in COVERAGE]
