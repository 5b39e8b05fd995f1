"""torch.compile of a step: the eager step's numbers, and no more graphs than sets of masked parameters."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

FIRST_STEP, LATER_STEPS = 1, 1  # state is made in the one, found in the other


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_compiled_step_recompiles_at_most_once_a_new_set_of_masked_parameters(backend, task):
    models = [task.network() for _ in range(2)]
    rates = [torch.tensor(task.lr) for _ in range(2)]
    ours, eager = (task.make(m.parameters(), lr=lr) for m, lr in zip(models, rates, strict=True))
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(ours.step, backend=counter)

    def steps(count=3):
        for step in range(count):
            for model, rate in zip(models, rates, strict=True):
                task.backward(model, step)
                rate.mul_(0.9)
            compiled()
            eager.step()
            assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
        return counter.frame_count

    def on_both(change):
        for model, opt in zip(models, (ours, eager), strict=True):
            change(opt.masks, model[0].weight, model[2].weight)

    assert steps() == FIRST_STEP + LATER_STEPS
    on_both(lambda masks, v, w: masks.update({w: task.half(w)}))
    assert steps() == 3
    on_both(lambda masks, v, w: masks.update({w: task.half(w, seed=1)}))  # replaced: the set is the same
    assert steps() == 3
    on_both(lambda masks, v, w: masks.update({v: task.half(v)}))
    assert steps() == 4
    on_both(lambda masks, v, w: masks.__delitem__(w))
    assert steps() == 5
    on_both(lambda masks, v, w: masks.clear())  # as in the beginning
    assert steps() == 5
    on_both(lambda masks, v, w: masks.update({w: task.half(w, seed=2)}))  # and as in the next phase
    assert steps() == 5


def test_a_compiled_step_with_masks_from_the_start(task):
    models = [task.network() for _ in range(2)]
    opts = [task.make(m.parameters()) for m in models]
    for model, opt in zip(models, opts, strict=True):
        opt.masks[model[2].weight] = task.half(model[2].weight)
    run = torch.compile(opts[0].step, backend="aot_eager"), opts[1].step
    for step in range(3):
        for model, each in zip(models, run, strict=True):
            task.backward(model, step)
            each()
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_a_compiled_step_takes_the_scalers_tensors(task):
    models = [task.network() for _ in range(2)]
    opts = [task.make(m.parameters()) for m in models]
    compiled = torch.compile(opts[0].step, backend="aot_eager")
    for step, found in enumerate((0.0, 1.0, 0.0)):
        for model, opt, each, scale in zip(models, opts, (compiled, opts[1].step), (512.0, 1.0), strict=True):
            task.backward(model, step, factor=scale)
            opt.grad_scale, opt.found_inf = torch.tensor(scale), torch.tensor(found)
            each()
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))
