"""`pytest benchmarks --benchmark-only`: the cases of `bench topk`, one benchmark a contender."""

import pytest

from acdc_kernels.benchmarks import cases, topk
from acdc_kernels.ops import roofline

CASES = (cases.Case(cases.SMALL, 0.9), *cases.TOPK_QUICK, cases.Case(cases.RESNET50, 0.9, "layer"))


@pytest.mark.parametrize("contender", ["ours", *topk.PEERS, topk.ROOFLINE])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.sparsity}")
def test_topk(benchmark, case, contender, threads):
    weights = case.model.weights()
    calls = topk.contenders(case, weights) | {topk.ROOFLINE: lambda: roofline.roofline_read(weights)}
    benchmark.group = f"topk {case.name} {case.sparsity:.0%} {threads} threads"
    benchmark.pedantic(calls[contender], rounds=5, warmup_rounds=1)
