"""What else computes a block-sparse linear layer on a GPU: cuBLAS, torch's BSR kernel in Triton, torch's 2:4 kernels.

BSR has a forward, and with a second matrix, of the transposed weight, an input gradient; a training loop would have to
refresh both. As torch has it, and with the fastest of a few launches: torch's own table of them is for the A100.
2:4 is of a weight of its own, half of it kept, and has a forward. All have their operands at hand in their own form.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

import acdc_kernels as acdc
from acdc_kernels.ops.block_linear.configs import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT

from .cuda_device import Call

DENSE, AGAIN = "torch dense (cuBLAS)", "torch dense again (noise)"
MASKED = "torch dense, weight * mask"
BSR, BSR_TUNED = "torch BSR", "torch BSR, fastest launch"
TWO_FOUR = "torch 2:4 (another mask)"
ALL = "forward + both gradients"
BSR_LAUNCHES = ((64, 4, 4), (128, 4, 3), (128, 8, 3))  # samples of a tile, warps, stages


@dataclass(frozen=True)
class Operands:
    """Of one layer's products; `weight` holds its zeros, and `mask` has its dtype."""

    x: Tensor
    grad: Tensor
    weight: Tensor
    mask: Tensor
    topology: acdc.Topology

    def results(self, what: str) -> tuple[Tensor, ...]:
        """In float64."""
        x, grad, weight = self.x.double(), self.grad.double(), self.weight.double()
        made = {
            FORWARD: lambda: x @ weight.t(),
            INPUT_GRADIENT: lambda: grad @ weight,
            WEIGHT_GRADIENT: lambda: (grad.t() @ x).mul_(self.mask),
        }
        return tuple(made[each]() for each in (made if what == ALL else [what]))


def operands(
    shape: tuple[int, int], samples: int, block: tuple[int, int], sparsity: float, dtype: torch.dtype, device: str
) -> Operands:
    """Normal numbers; of the blocks, drawn by chance, as many are kept as `sparsity` says."""
    generator = torch.Generator(device).manual_seed(round(1000 * sparsity))
    (rows, cols), (r, c) = shape, block
    grid = rows // r, cols // c
    kept = torch.zeros(grid[0] * grid[1], dtype=torch.bool, device=device)
    keep = max(1, kept.numel() - round(sparsity * kept.numel()))
    kept[torch.randperm(kept.numel(), generator=generator, device=device)[:keep]] = True
    mask = kept.view(grid).repeat_interleave(r, 0).repeat_interleave(c, 1)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    x, grad = (normal(samples, width).to(dtype) for width in (cols, rows))
    weight = (normal(rows, cols) * cols**-0.5).to(dtype) * mask
    _, topology = acdc.compress(weight, acdc.pack_mask(mask), f"block:{r}x{c}")
    return Operands(x, grad, weight, mask.to(dtype), topology)


def dense(o: Operands, what: str) -> Call:
    calls: dict[str, Call] = {
        FORWARD: lambda: functional.linear(o.x, o.weight),
        INPUT_GRADIENT: lambda: o.grad @ o.weight,
        WEIGHT_GRADIENT: lambda: o.grad.t() @ o.x,
    }
    return calls[what] if what in calls else lambda: tuple([call() for call in calls.values()])


def masked(o: Operands, what: str) -> Call | None:
    """As a layer trains whose weight is multiplied by its mask in the graph; its input gradient is the dense one."""
    if what == FORWARD:
        return lambda: functional.linear(o.x, o.weight * o.mask)
    if what == WEIGHT_GRADIENT:
        return lambda: (o.grad.t() @ o.x).mul_(o.mask)
    if what == INPUT_GRADIENT:
        return None

    def step() -> tuple[Tensor, ...]:
        weight = o.weight * o.mask
        return functional.linear(o.x, weight), o.grad @ weight, (o.grad.t() @ o.x).mul_(o.mask)

    return step


def bsr(o: Operands, what: str) -> dict[str, Call]:
    """Name -> call: torch's own choice and several launches; empty for products that it has none for."""
    from torch.sparse._triton_ops import bsr_dense_addmm, bsr_dense_mm

    if what not in (FORWARD, INPUT_GRADIENT) or o.x.element_size() != 2:
        return {}
    _, _, _, r, c = o.topology.meta
    weight, x, block = (o.weight, o.x, (r, c)) if what == FORWARD else (o.weight.t().contiguous(), o.grad, (c, r))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that compressed layouts are in beta
        matrix = weight.to_sparse_bsr(block)
    samples = x.shape[0]

    def tuned(wide: int, warps: int, stages: int) -> Call:
        meta = {"SPLIT_N": samples // wide, "GROUP_SIZE_ROW": 4, "num_warps": warps, "num_stages": stages}

        def call() -> Tensor:
            out = x.new_empty((matrix.shape[0], samples))
            return bsr_dense_addmm(out, matrix, x.t(), beta=0, alpha=1, out=out, meta=dict(meta)).t()

        return call

    calls: dict[str, Call] = {BSR: lambda: bsr_dense_mm(matrix, x.t()).t()}
    fitting = [launch for launch in BSR_LAUNCHES if samples % launch[0] == 0]
    return calls | {f"{BSR} {wide} w{warps} s{stages}": tuned(wide, warps, stages) for wide, warps, stages in fitting}


def two_four(o: Operands) -> tuple[Call, Tensor]:
    """The forward of a dense weight of which 2 of 4 neighbours are kept, and its result in float64."""
    weight = torch.randn(o.weight.shape, device=o.x.device).mul_(o.weight.shape[1] ** -0.5).to(o.x.dtype)
    groups = weight.view(-1, 4)
    largest = groups.abs().topk(2, dim=1).indices
    weight = torch.zeros_like(groups).scatter_(1, largest, groups.gather(1, largest)).view_as(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it is a prototype
        sparse = torch.sparse.to_sparse_semi_structured(weight)
    if getattr(sparse, "BACKEND", "") == "cusparselt":  # else its first algorithm, whichever suits
        sparse.alg_id_cusparselt = torch._cslt_sparse_mm_search(sparse.packed, o.x.t())
    return lambda: functional.linear(o.x, sparse), o.x.double() @ weight.double().t()
