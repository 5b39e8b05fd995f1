"""`pytest benchmarks --benchmark-only`: the cases of `bench update`, one benchmark a contender."""

import pytest

from acdc_kernels.benchmarks import cases, update

CASES = (cases.Case(cases.SMALL, 0.9), *cases.UPDATE_QUICK)
RUNS = [(case, kind, name) for case in CASES for kind in update.HYPER for name in update.names(case, kind)]


@pytest.mark.parametrize(
    ("case", "optimizer", "contender"), RUNS, ids=[f"{c.name}-{c.sparsity}-{kind}-{name}" for c, kind, name in RUNS]
)
def test_update(benchmark, case, optimizer, contender, threads):
    calls = update.contenders(case, case.model.weights(), optimizer)
    benchmark.group = f"update {optimizer} {case.name} {case.sparsity:.0%} {threads} threads"
    benchmark.pedantic(calls[contender], rounds=7, warmup_rounds=1)
