"""Topologies on a GPU: the CPU's index, values inside of a captured graph, and NaN for a mask that changed unseen."""

import pytest
import torch

import acdc_kernels as acdc
from acdc_kernels.ops._registry import has_kernel
from acdc_kernels.ops.values import cases, contract

from .conftest import Captured

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and has_kernel(contract.gather_values_op, "cuda")),
    reason="no CUDA device, or no CUDA kernels",
)


@pytest.mark.parametrize("pattern", ["unstructured", "block:4x1"])
def test_topologies_are_the_cpus(pattern):
    for shape in ((4, 1), (516, 514), (1028, 40), (2048, 3000)):
        for name in ("a twentieth", "nine tenths", "ragged", "all pruned"):
            bits, weight = acdc.pack_mask(cases.mask(shape, name, pattern)), torch.randn(shape)
            want, topology = acdc.compress(weight, bits, pattern)
            got, there = acdc.compress(weight.cuda(), bits.cuda(), pattern)
            assert all(torch.equal(a.cpu(), b) for a, b in zip(there.index, topology.index, strict=True))
            assert torch.equal(got.cpu(), want)
            assert torch.equal(acdc.decompress(got, there).cpu(), acdc.decompress(want, topology))


def test_a_captured_graph_gathers_and_scatters():
    weight = torch.randn(512, 700, device="cuda")
    mask = torch.rand(512, 700, device="cuda") < 0.1
    _, topology = acdc.compress(weight, acdc.pack_mask(mask))
    captured = Captured(lambda: acdc.decompress(acdc.compress(weight, topology)[0], topology))
    weight.normal_()
    captured.replay()
    assert torch.equal(captured.result, weight * mask)


def test_unused_bits_are_refused():
    with pytest.raises(ValueError, match="bits must have zeros in the unused bits"):
        acdc.compress(torch.randn(3, 1, device="cuda"), torch.tensor([255], dtype=torch.uint8, device="cuda"))


def test_a_mask_that_changed_unseen_gives_nan():
    bits = acdc.pack_mask(torch.rand(100, 100, device="cuda") < 0.2)
    weight = torch.randn(100, 100, device="cuda")
    values, topology = acdc.compress(weight, bits)
    bits[:4] = 255
    index = list(topology.index), list(topology.meta), topology.format
    got = torch.ops.acdc_kernels.gather_values(weight, *index)[topology.index[2].long()]
    kept = int(topology.index[1][1])
    assert got[:kept].isnan().all()
    assert torch.equal(got[kept:], values[topology.index[2].long()][kept:])
    dense = torch.ops.acdc_kernels.scatter_values(values, *index).view(-1)
    assert dense[:32].isnan().all()
    assert not dense[4096:].isnan().any()
