"""What each module type gets in a compressed phase: the table that ``find_weights`` follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList

from ..policy.scopes import Treatment

__all__ = ["COVERAGE", "Coverage", "coverage_of"]


def _is_hugging_face_conv1d(module: nn.Module) -> bool:
    return any(
        cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils" for cls in type(module).__mro__
    )


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == module.in_channels > 1


@dataclass(frozen=True)
class Coverage:
    """One row: the modules that it is about, how their weights are treated, and why.

    treatment: ``"sparse"``: masked, and sparse products may take the place of the layer's own; ``"masked-dense"``:
        masked, while its products stay dense; ``"dense"``: never masked.
    matches: (module, its parent) -> whether the row is about this module; the first row that matches decides.
    attributes: the names of its weights.
    input_first: the weight is stored ``[C_in, C_out, ...]``, which n:m and block patterns can't take.
    listed: whether ``Sparsifier.uncovered()`` names weights that stay dense.
    """

    modules: str
    treatment: Treatment
    why: str
    matches: Callable[[nn.Module, nn.Module | None], bool] = field(repr=False)
    attributes: tuple[str, ...] = ("weight",)
    input_first: bool = False
    listed: bool = True


COVERAGE: tuple[Coverage, ...] = (
    Coverage(
        "`out_proj` of `MultiheadAttention`",
        "masked-dense",
        "torch's attention reads the weight without calling the layer",
        lambda module, parent: isinstance(module, nn.Linear) and isinstance(parent, nn.MultiheadAttention),
    ),
    Coverage("`Linear`", "sparse", "", lambda module, parent: isinstance(module, nn.Linear)),
    Coverage(
        "depthwise `Conv1d`, `Conv2d`, `Conv3d`",
        "masked-dense",
        "one input channel a filter: bound by memory, not by its products",
        lambda module, parent: _is_depthwise(module),
    ),
    Coverage("`Conv2d`, grouped or not", "sparse", "", lambda module, parent: isinstance(module, nn.Conv2d)),
    Coverage(
        "`Conv1d`, `Conv3d`",
        "masked-dense",
        "sparse products are for linear layers and 2-dim convolutions",
        lambda module, parent: isinstance(module, (nn.Conv1d, nn.Conv3d)),
    ),
    Coverage(
        "`ConvTranspose1d`, `ConvTranspose2d`, `ConvTranspose3d`",
        "masked-dense",
        "sparse products are for linear layers and 2-dim convolutions; the weight is stored input channels first, so "
        "that structured patterns leave it dense",
        lambda module, parent: isinstance(module, _ConvTransposeNd),
        input_first=True,
    ),
    Coverage(
        "`in_proj_weight`, `q_proj_weight`, `k_proj_weight`, `v_proj_weight` of `MultiheadAttention`",
        "masked-dense",
        "torch's attention multiplies by them itself",
        lambda module, parent: isinstance(module, nn.MultiheadAttention),
        attributes=("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    ),
    Coverage(
        "`Conv1D` of Hugging Face's transformers",
        "masked-dense",
        "a linear layer whose weight is stored input features first, so that structured patterns leave it dense",
        lambda module, parent: _is_hugging_face_conv1d(module),
        input_first=True,
    ),
    Coverage(
        "`Embedding`, `EmbeddingBag`",
        "dense",
        "a lookup, not a product",
        lambda module, parent: isinstance(module, (nn.Embedding, nn.EmbeddingBag)),
    ),
    Coverage(
        "`RNN`, `LSTM`, `GRU` and their cells",
        "dense",
        "recurrent weights are not covered",
        lambda module, parent: isinstance(module, (nn.RNNBase, nn.RNNCellBase)),
    ),
    Coverage("`Bilinear`", "dense", "a product of two inputs", lambda module, parent: isinstance(module, nn.Bilinear)),
    Coverage(
        "normalisation",
        "dense",
        "never pruned, as in the paper",
        lambda module, parent: isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)),
        listed=False,
    ),
    Coverage(
        "a weight that a parametrization computes (`spectral_norm`, `weight_norm`)",
        "dense",
        "computed, not a parameter",
        lambda module, parent: isinstance(module, ParametrizationList),
        listed=False,  # its layer's weight is
    ),
    Coverage(
        "any other module's own parameters of two or more dimensions",
        "dense",
        "not the weight of a Linear or Conv layer",
        lambda module, parent: True,
    ),
)


def coverage_of(module: nn.Module, parent: nn.Module | None) -> Coverage:
    """The row of ``COVERAGE`` that ``module``, a child of ``parent``, falls under."""
    return next(row for row in COVERAGE if row.matches(module, parent))
