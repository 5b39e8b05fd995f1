"""The roofline loops must do the work that they claim, or the benchmarks compare against nothing."""

import pytest
import torch

from acdc_kernels import pack_mask
from acdc_kernels.ops.roofline import cases, reference, roofline_read, roofline_update_

from .conftest import cpu_only

pytestmark = cpu_only("what benchmarks compare a GPU with is torch's own copies")


@pytest.mark.parametrize("shapes", cases.SHAPES)
def test_read_sees_every_byte(shapes, threads):
    tensors = [torch.randn(s) for s in cases.SHAPES[shapes]]
    assert torch.equal(roofline_read(tensors), reference.roofline_read(tensors))
    planted = [torch.zeros(s, dtype=torch.uint8) for s in cases.SHAPES[shapes]]
    for t in planted:
        for at in {0, t.numel() // 2, t.numel() - 1} if t.numel() else ():
            t.view(-1)[at] = 255
            assert int(roofline_read(planted)) == 255
            t.view(-1)[at] = 0


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shapes", cases.SHAPES)
def test_update_is_the_references(shapes, masked, threads):
    ours = [[torch.randn(s) for s in cases.SHAPES[shapes]] for _ in range(3)]
    theirs = [[t.clone() for t in ts] for ts in ours]
    masks = [pack_mask(torch.rand(s) < 0.4) for s in cases.SHAPES[shapes]] if masked else []
    roofline_update_(*ours, masks)
    reference.roofline_update_(*theirs, masks)
    assert all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))
