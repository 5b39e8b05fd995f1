"""Which configs there are for a product of blocks, and what can be said of them without Triton."""

import itertools

import pytest

from acdc_kernels.ops.block_linear import configs
from acdc_kernels.ops.block_linear.configs import Config

SIDES = 32, 64, 128
CAPABILITIES = (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)


def meta(r, c, rows=4096, cols=4096, density=0.1):
    return [rows, cols, int(rows * cols * density) // (r * c) * (r * c), r, c]


def every_case():
    samples = 1, 16, 17, 64, 65, 500, 8192
    for product, dtype, capability in itertools.product(configs.PRODUCTS, configs.BYTES, CAPABILITIES):
        for r, c, n in itertools.product(SIDES, SIDES, samples):
            yield product, dtype, meta(r, c), n, 132, capability
    for product, kept in itertools.product(configs.PRODUCTS, (0.0, 1.0)):
        yield product, "bfloat16", meta(128, 128, 128, 128, kept), 0, 132, (9, 0)


def test_candidates_can_all_run():
    for case in every_case():
        product, dtype, layer, _, _, capability = case
        found = configs.candidates(*case)
        assert 1 <= len(found) == len(set(found)) <= 6, case
        assert configs.default(*case) == found[0]
        for config in found:
            configs.check(config, product, layer, capability)
            assert configs.shared_bytes(config, product, dtype, layer) <= configs.shared_limit(capability), (
                case,
                config,
            )
            assert configs.parse(str(config)) == config


def test_on_hopper_tiles_are_what_its_matrix_units_take():
    for product, (r, c) in itertools.product(configs.PRODUCTS, itertools.product(SIDES, SIDES)):
        for n in (1, 64, 8192):
            for config in configs.candidates(product, "bfloat16", meta(r, c), n, 132, (9, 0)):
                assert (config.depth if product == configs.WEIGHT_GRADIENT else config.samples) >= 64


def test_few_blocks_are_split():
    few, many = (meta(128, 128, density=density) for density in (0.02, 0.5))
    case = "bfloat16", few, 8192, 132, (9, 0)
    assert configs.default(configs.WEIGHT_GRADIENT, *case).splits > 1
    case = "bfloat16", many, 8192, 132, (9, 0)
    assert configs.default(configs.WEIGHT_GRADIENT, *case).splits == 1


def test_text():
    config = Config(64, 128, 4, 3, splits=5, persistent=True, descriptors=True)
    assert str(config) == "64x128 w4 s3 splits5 persistent descriptors"
    assert configs.parse(str(config)) == config
    assert str(Config(256, 64, 8, 4)) == "256x64 w8 s4"


@pytest.mark.parametrize("text", ["", "fast", "64x64", "64x64 w4", "64x64 w4 s3 splits", "64x64 w4 s3 ", "64x64 s3 w4"])
def test_other_texts(text):
    with pytest.raises(ValueError, match=r"config must be 'SAMPLESxDEPTH wWARPS sSTAGES', .* got ''?"):
        configs.parse(text)


@pytest.mark.parametrize(
    ("product", "text", "message"),
    [
        ("forward", "512x64 w4 s3", "16, 32, 64, 128 or 256 samples"),
        ("forward", "64x128 w4 s3", "a depth that goes with blocks of 64"),
        ("forward", "64x0 w4 s3", "a depth that goes with blocks of 64"),
        ("input gradient", "64x128 w4 s3 splits2", "no splits for the input gradient"),
        ("weight gradient", "64x96 w4 s3", "a depth that goes with blocks of 64"),
        ("weight gradient", "64x32 w4 s3", "a depth that goes with blocks of 64"),
        ("weight gradient", "64x64 w4 s3 persistent", "programs of one tile for the weight gradient"),
        ("weight gradient", "64x64 w4 s3 splits65", "1 to 64 splits"),
        ("weight gradient", "64x128 w4 s3 descriptors", "one block a program for the weight gradient with descriptors"),
        ("forward", "64x64 w3 s3", "1, 2, 4, 8 or 16 warps"),
        ("forward", "64x64 w4 s9", "1 to 8 stages"),
    ],
)
def test_what_cannot_run(product, text, message):
    with pytest.raises(ValueError, match=f"config must have {message}, got '{text}'"):
        configs.check(configs.parse(text), product, meta(128, 64), (9, 0))


def test_descriptors_need_a_copy_engine():
    config = configs.parse("64x64 w4 s3 descriptors")
    with pytest.raises(ValueError, match=r"no descriptors on compute capability 8\.0"):
        configs.check(config, "forward", meta(64, 64), (8, 0))


def test_other_products_and_dtypes():
    with pytest.raises(
        ValueError, match="product must be 'forward', 'input gradient', 'weight gradient', got 'backward'"
    ):
        configs.candidates("backward", "bfloat16", meta(64, 64), 64, 132, (9, 0))
    with pytest.raises(ValueError, match="dtype must be bfloat16, float16, tf32, float32, got float64"):
        configs.candidates("forward", "float64", meta(64, 64), 64, 132, (9, 0))
