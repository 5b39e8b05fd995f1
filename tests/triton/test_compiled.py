"""The kernels of blocks compiled ahead of time for GPUs that aren't there, by the Triton that is: what the code has to be."""

import json
from pathlib import Path

import pytest

from acdc_kernels.ops.block_linear import configs

PROGRAM = Path(__file__).parent / "compile_blocks.py"
ALL = [f"{r}x{c}" for r in (32, 64, 128) for c in (32, 64, 128)]
SOME = ["128x128", "64x64", "32x32"]
slow = pytest.mark.slow
CASES = [
    pytest.param(90, "bfloat16", "default", ["128x128"], id="90-quick"),
    *(pytest.param(cc, "bfloat16", "default", ["64x32"], id=f"{cc}-quick") for cc in (80, 100, 120)),
    *(pytest.param(cc, "float16", "default", ALL, marks=slow, id=f"{cc}-blocks") for cc in (80, 90, 100, 120)),
    *(
        pytest.param(cc, dtype, "all", SOME, marks=slow, id=f"{cc}-{dtype}")
        for cc in (80, 90, 100, 120)
        for dtype in ("bfloat16", "tf32", "float32")
    ),
]


def sums_of_tile(kernel):
    config = configs.parse(kernel["config"])
    return config.depth if kernel["product"] == configs.WEIGHT_GRADIENT else config.samples


@pytest.mark.parametrize(("capability", "dtype", "which", "blocks"), CASES)
def test_what_the_compiler_makes(capability, dtype, which, blocks, run_python):
    out = run_python("-W", "error::DeprecationWarning:acdc_kernels", PROGRAM, capability, dtype, which, *blocks)
    kernels = [json.loads(line) for line in out.splitlines()]
    assert {k["product"] for k in kernels} == {*configs.PRODUCTS, "values"}
    assert len({k["config"] for k in kernels}) >= (6 if which == "all" else 3)
    halves = dtype in ("bfloat16", "float16")
    for kernel in kernels:
        name = json.dumps(kernel)
        assert kernel["local"] == 0, name
        assert kernel["stack"] <= (0 if halves else 32), name  # bytes that don't fit into registers
        assert kernel["shared"] <= configs.shared_limit(divmod(capability, 10)), name
        if kernel["kernel"] in ("_add_parts", "_move"):
            assert any(".v4" in load for load in kernel["loads"]), name
            continue
        assert kernel["shared"] <= kernel["estimate"], name
        if halves:
            check_halves(kernel, capability, name)


def check_halves(kernel, capability, name):
    config = configs.parse(kernel["config"])
    if config.descriptors:
        assert kernel["bulk"] > 0, name
        assert not kernel["copies"], name
    else:
        assert kernel["copies"], name
        assert set(kernel["copies"]) == {"10"}, name  # 0x10 bytes each
        if config.stages > 2:  # as many tiles on their way as asked for: two copies each
            assert max(kernel["waits"]) == 2 * (config.stages - 2), name
        if kernel["product"] != configs.FORWARD:  # which has a bias
            assert not any(".v" in load for load in kernel["loads"]), name  # no tile goes through registers
    assert any(".v4" in store for store in kernel["stores"]), name
    unit = {8: "mma", 9: "wgmma", 10: "tcgen05", 12: "mma"}[capability // 10]
    if sums_of_tile(kernel) >= 64:
        assert kernel[unit] > 0, name
