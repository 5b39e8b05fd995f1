"""Kernels that don't wait can't raise: what they do with a mask that was changed."""

from __future__ import annotations

import pytest
import torch

import acdc_kernels as acdc

OPS = torch.ops.acdc_kernels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_mask_that_keeps_other_numbers_gives_nan_for_its_runs(dtype):
    """A run is 4096 weights; the other runs are right."""
    weight = torch.randn(100, 100, device="cuda").to(dtype)
    mask = torch.rand(100, 100, device="cuda") < 0.2
    bits = acdc.pack_mask(mask)
    values, topology = acdc.compress(weight, bits)
    bits[512:516] = 255  # in the second of three runs
    broken = torch.zeros(10000, dtype=torch.bool, device="cuda")
    broken[4096:8192] = True
    got = OPS.gather_values(weight, topology.index, topology.meta, topology.format)
    assert torch.equal(got[topology.index[2].long()].isnan(), broken[mask.view(-1)])
    assert torch.equal(got[~got.isnan()], values[~got.isnan()])
    dense = OPS.scatter_values(values, topology.index, topology.meta, topology.format).view(-1)
    now = acdc.unpack_mask(bits, (10000,))
    assert torch.equal(dense.isnan(), broken & now)
    assert torch.equal(dense[~broken], (weight * mask).view(-1)[~broken])


def test_a_topology_of_a_changed_mask_is_refused():
    weight = torch.randn(100, 100, device="cuda")
    values, topology = acdc.compress(weight, acdc.pack_mask(torch.rand(100, 100, device="cuda") < 0.2))
    topology.bits.zero_()
    for call in (lambda: acdc.compress(weight, topology), lambda: acdc.decompress(values, topology)):
        with pytest.raises(ValueError, match="topology must be of the mask as it is now"):
            call()
