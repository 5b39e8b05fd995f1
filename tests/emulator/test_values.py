"""What kernels that may not wait do where the CPU's raise."""

ERRORS = """
import itertools
import torch
import acdc_kernels as acdc

OPS = torch.ops.acdc_kernels
for dtype, compiled in itertools.product((torch.float32, torch.float64, torch.bfloat16, torch.float16), (False, True)):
    weight = torch.randn(100, 100).to(dtype)
    mask = torch.rand(100, 100) < 0.2
    bits = acdc.pack_mask(mask)
    values, topology = acdc.compress(weight, bits)
    gather, scatter = (
        lambda w, t: OPS.gather_values(w, t.index, t.meta, t.format),
        lambda v, t: OPS.scatter_values(v, t.index, t.meta, t.format),
    )
    if compiled:
        gather = torch.compile(lambda w, t: acdc.compress(w, t)[0], backend="aot_eager", fullgraph=True)
        scatter = torch.compile(acdc.decompress, backend="aot_eager", fullgraph=True)
        assert torch.equal(gather(weight, topology), values)
        assert torch.equal(scatter(values, topology), weight * mask)
    bits[512:516] = 255  # in the second of three runs
    broken = torch.zeros(10000, dtype=torch.bool)
    broken[4096:8192] = True
    got = gather(weight, topology)
    # Values of the mask as it was: NaN in that run, right elsewhere.
    assert torch.equal(got[topology.index[2].long()].isnan(), broken[mask.view(-1)])
    assert torch.equal(got[~got.isnan()], values[~got.isnan()])
    dense = scatter(values, topology).view(-1)
    now = acdc.unpack_mask(bits, (10000,))
    assert torch.equal(dense.isnan(), broken & now)
    assert torch.equal(dense[~broken], (weight * mask).view(-1)[~broken])
    assert not dense[broken & ~now].any()
print("all NaN")
"""

COUNTS = """
import torch
import acdc_kernels as acdc

bits = acdc.pack_mask(torch.rand(40, 70) < 0.2)
for kept in (0, 4, 2800):
    for format in ("bundles", "bundles-4x1"):
        for tensor in torch.ops.acdc_kernels.build_bundles(bits, [40, 70, kept, 16, 8, 8, 32], format):
            assert tensor.device == bits.device
print("nothing raised")
"""


def test_a_mask_that_keeps_other_numbers_gives_nan(run_emulated):
    for order in (0, 7):
        assert "all NaN" in run_emulated("-c", ERRORS, order=order)


def test_another_count_than_the_masks_is_not_waited_for(run_emulated):
    assert "nothing raised" in run_emulated("-c", COUNTS)
