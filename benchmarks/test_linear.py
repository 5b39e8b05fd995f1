"""`pytest benchmarks --benchmark-only`: the cases of `bench linear`, one benchmark a contender."""

import pytest

from acdc_kernels.benchmarks import layers, linear

CASES = {
    "mlp": linear.Products(1024, 1024, 128, training=False, sparsities=(0.9,)),
    "mlp-training": linear.Products(1024, 1024, 128, training=True, sparsities=(0.9,)),
    "wide": linear.Products(2048, 2048, 512, training=False, sparsities=(0.9,)),
    "wide-training": linear.Products(2048, 2048, 512, training=True, sparsities=(0.9,)),
}
CONTENDERS = {
    "dense": linear.DENSE,
    "bfloat16": linear.BF16,
    "csr": (linear.CSR, "unstructured", 0.9),
    "ours": ("ours", "unstructured", 0.9),
    "ours-4x1": ("ours", "block:4x1", 0.9),
}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("case", CASES)
def test_linear(benchmark, case, contender, threads):
    products = CASES[case]
    x, grad = layers.inputs(products.samples, products.cols), layers.inputs(products.samples, products.rows, seed=2)
    with layers.fresh_plans():
        call = products.contenders(x, grad)[CONTENDERS[contender]]
    benchmark.group = f"linear {products.name} 90% {threads} threads"
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
