"""The Sparsifier's edges: what it refuses, what it leaves alone, and what is left when it goes."""

from __future__ import annotations

import copy
import gc
import pickle
import tempfile
import textwrap
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from acdc_kernels import pack_mask
from acdc_kernels.nn import is_wrapped, unwrap
from acdc_kernels.optim import MaskedSGD
from acdc_kernels.policy import schedules
from acdc_kernels.sparsifier import Sparsifier

SCHEDULE = schedules.acdc(total=4, warmup=1, compressed=1, dense=1, final_dense=1, final_compressed=1)
COMPRESSED = schedules.acdc(total=2, warmup=0, compressed=1, dense=1, final_dense=0, final_compressed=2)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 2))


def sgd(model):
    return MaskedSGD(model.parameters(), lr=0.1, momentum=0.9)


def frozen(model):
    return model.requires_grad_(False)


def mixed_devices():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))


def mixed_dtypes():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64))


REFUSED = {
    # model, settings, error, what it says
    "kernels": (
        net,
        {"kernels": "triton"},
        ValueError,
        "kernels must be 'auto' or 'model' or 'dense' or 'sparse' or 'fp16', got 'triton'",
    ),
    "storage": (net, {"storage": "compact"}, ValueError, "storage must be 'dense', got 'compact'"),
    "tie rule": (net, {"tie_rule": "first"}, ValueError, "tie_rule must be 'lowest_index' or 'reference', got 'first'"),
    "tie rule of a pattern": (
        net,
        {"tie_rule": "reference", "pattern": "2:4"},
        ValueError,
        "pattern must be 'unstructured' for tie_rule 'reference', got '2:4'",
    ),
    "process group": (
        net,
        {"process_group": "world"},
        TypeError,
        "process_group must be a .*ProcessGroup or None, got",
    ),
    "pattern": (net, {"pattern": "diagonal"}, ValueError, "pattern must be 'unstructured', .*, got 'diagonal'"),
    "pattern's sparsity": (net, {"pattern": "2:4", "sparsity": 0.9}, ValueError, "sparsity must be 0.5 .*, got 0.9"),
    "pattern that fits nowhere": (net, {"pattern": "block:64x64"}, ValueError, "weight to prune, got 0.weight"),
    "scope": (net, {"scope": "uniform"}, ValueError, "scope must be 'global' or 'layer', got 'uniform'"),
    "sparsity 1": (net, {"sparsity": 1.0}, ValueError, r"sparsity must be in \[0, 1\), got 1.0"),
    "sparsity below 0": (net, {"sparsity": -0.1}, ValueError, r"sparsity must be in \[0, 1\), got -0.1"),
    "exempt misspelt": (net, {"exempt": ["9"]}, ValueError, "exempt: '9' matches no Linear or Conv layer"),
    "exempt of another kind": (net, {"exempt": [3]}, TypeError, "exempt must hold names, globs or predicates"),
    "snapshot": (net, {"dense_snapshot": "/no/such/folder/x"}, ValueError, "dense_snapshot must be 'disk', 'memory'"),
    "no layers": (lambda: nn.LayerNorm(3), {}, ValueError, "weight to prune, got no Linear or Conv layer"),
    "all frozen": (lambda: frozen(nn.Linear(2, 2)), {}, ValueError, r"weight to prune, got weight \(frozen\)"),
    "all exempt": (net, {"exempt": "*"}, ValueError, r"got 0.weight \(exempt: matches '\*'\); 2.weight"),
    "only ends": (lambda: nn.Linear(2, 2), {"scope": "layer"}, ValueError, "weight to prune, got weight"),
    "devices": (mixed_devices, {}, ValueError, r"share one device, got .*meta \(1.weight\).*cpu \(0.weight\)"),
    "dtypes": (mixed_dtypes, {}, ValueError, r"share one dtype, got .*float64 \(1.weight\).*float32 \(0.weight\)"),
    "lazy": (lambda: nn.LazyLinear(3), {}, ValueError, "model must have run once before"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_before_anything_changes(case):
    make, settings, error, message = REFUSED[case]
    model = make()
    optimizer = MaskedSGD(model.parameters(), lr=0.1)
    before = str(model)
    with pytest.raises(error, match=message):
        Sparsifier(model, optimizer, COMPRESSED, **settings)
    assert str(model) == before
    assert not any(is_wrapped(layer) for layer in model.modules())
    assert len(optimizer.masks) == 0


def test_refuses_other_types():
    model = net()
    with pytest.raises(TypeError, match=r"optimizer must be one with masks, got SGD; use acdc_kernels.MaskedSGD"):
        Sparsifier(model, torch.optim.SGD(model.parameters()), SCHEDULE)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got list"):
        Sparsifier([model], sgd(model), SCHEDULE)
    with pytest.raises(TypeError, match=r"schedule must be made by acdc_kernels.schedules.acdc or dense, got dict"):
        Sparsifier(model, sgd(model), SCHEDULE.to_dict())


def test_refuses_a_second_sparsifier():
    model = net()
    first = Sparsifier(model, sgd(model), SCHEDULE)
    with pytest.raises(ValueError, match="model must not have a sparsifier already; remove"):
        Sparsifier(model, sgd(model), SCHEDULE)
    with pytest.raises(ValueError, match="model must not have a sparsifier already"):
        Sparsifier(nn.Sequential(nn.Linear(2, 4), model), sgd(model), SCHEDULE)
    other = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"call acdc_kernels.nn.unwrap"):
        Sparsifier(other, sgd(other), SCHEDULE)
    Sparsifier(unwrap(other), sgd(other), SCHEDULE)
    first.remove()
    Sparsifier(model, sgd(model), SCHEDULE)


def test_refuses_weights_that_are_masked_already():
    model = net()
    optimizer = sgd(model)
    optimizer.masks[model[2].weight] = pack_mask(torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"optimizer.masks must not hold weights that compete, got 2.weight"):
        Sparsifier(model, optimizer, SCHEDULE)
    assert not any(is_wrapped(layer) for layer in model.modules())
    Sparsifier(model, optimizer, SCHEDULE, exempt="2")


def snapshot_of(model, optimizer, sparsifier):
    return copy.deepcopy([model.state_dict(), optimizer.state_dict(), sparsifier.step_count, sparsifier.phase])


def test_nan_at_a_flip_changes_nothing():
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, SCHEDULE)
    with torch.no_grad():
        model[0].weight[1, 2] = model[3].weight[0, :3] = float("nan")
    before = str(snapshot_of(model, optimizer, sparsifier))
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=r"compressed phase 1 begins \(step 1\), got NaN in 0.weight \(1 of 32\), 3.weight \(3 of 16\)",
        ):
            sparsifier.step()
    assert str(snapshot_of(model, optimizer, sparsifier)) == before
    assert not sparsifier.masks
    with torch.no_grad():
        model[0].weight.nan_to_num_()
        model[3].weight.nan_to_num_()
    sparsifier.step()
    assert sparsifier.phase.kind == "compressed"


def test_nan_at_the_start_changes_nothing():
    model = net()
    optimizer = sgd(model)
    with torch.no_grad():
        model[2].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"got NaN in 2.weight \(64 of 64\)"):
        Sparsifier(model, optimizer, COMPRESSED)
    assert not any(is_wrapped(layer) for layer in model.modules())
    assert len(optimizer.masks) == 0
    assert torch.count_nonzero(model[0].weight) == 32


def test_a_nan_that_does_not_compete_is_not_looked_at():
    model = net()
    with torch.no_grad():
        model[2].weight.fill_(float("nan"))
    assert Sparsifier(model, sgd(model), COMPRESSED, exempt="2").phase.kind == "compressed"


def test_a_snapshot_that_fails_changes_nothing(tmp_path, monkeypatch):
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, SCHEDULE, dense_snapshot=tmp_path / "twin.pt")
    before = str(snapshot_of(model, optimizer, sparsifier))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        sparsifier.step()
    assert str(snapshot_of(model, optimizer, sparsifier)) == before


def test_uncovered():
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(1, 4, 3),
            "frozen": frozen(nn.Linear(4, 4)),
            "elsewhere": nn.Linear(4, 4),
            "plain": nn.Linear(4, 4),
            "odd": nn.Linear(4, 4),
            "norm": nn.BatchNorm1d(4),
            "head": nn.Linear(4, 4),
        }
    )
    trained = [p for name, layer in model.items() if name != "elsewhere" for p in layer.parameters()]
    sparsifier = Sparsifier(model, MaskedSGD(trained), COMPRESSED, scope="layer", exempt="odd")
    assert list(sparsifier.masks) == ["plain.weight"]
    reasons = sparsifier.uncovered()
    assert reasons == {
        "stem.weight": "exempt: the first layer, under scope 'layer'",
        "frozen.weight": "frozen",
        "elsewhere.weight": "not in the optimizer",
        "odd.weight": "exempt: matches 'odd'",
        "head.weight": "exempt: the last layer, under scope 'layer'",
    }
    reasons.clear()
    assert len(sparsifier.uncovered()) == 5
    assert [name for name, layer in model.items() if is_wrapped(layer)] == ["plain"]


def test_exempt_predicate_sees_names_and_layers():
    model = net()
    seen = []
    sparsifier = Sparsifier(
        model, sgd(model), COMPRESSED, exempt=lambda name, layer: seen.append((name, layer)) or layer.out_features == 2
    )
    assert seen == [("0", model[0]), ("2", model[2]), ("3", model[3])]
    assert list(sparsifier.masks) == ["0.weight", "2.weight"]


def test_masks_are_read_only():
    model = net()
    sparsifier = Sparsifier(model, sgd(model), COMPRESSED)
    with pytest.raises(TypeError):
        sparsifier.masks["0.weight"] = None
    assert list(sparsifier.masks) == ["0.weight", "2.weight", "3.weight"]
    assert [bits.numel() for bits in sparsifier.masks.values()] == [4, 8, 2]


@pytest.mark.parametrize("how", ["remove", "flip", "load"])
def test_masks_of_the_users_own_stay(how):
    model = net()
    optimizer = sgd(model)
    own = pack_mask(torch.arange(8) % 2 == 0)
    optimizer.masks[model[0].bias] = own
    sparsifier = Sparsifier(model, optimizer, SCHEDULE)
    dense_state = copy.deepcopy(sparsifier.state_dict())
    sparsifier.step()
    assert len(optimizer.masks) == 4
    if how == "remove":
        sparsifier.remove()
    elif how == "flip":
        sparsifier.step()
    else:
        sparsifier.load_state_dict(dense_state)
    assert [p is model[0].bias for p in optimizer.masks] == [True]
    assert optimizer.masks[model[0].bias] is own


def test_starting_dense_leaves_the_optimizer_alone():
    model = net()
    optimizer = sgd(model)
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    Sparsifier(model, optimizer, SCHEDULE)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i]["momentum_buffer"], before[i]["momentum_buffer"]) for i in before)
    assert after[0]["momentum_buffer"].count_nonzero() > 0


def test_remove():
    model = net()
    plain = str(model)
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, SCHEDULE)
    assert str(model) != plain
    sparsifier.step()
    weights = copy.deepcopy(model.state_dict())
    for _ in range(2):
        sparsifier.remove()
    assert str(model) == plain
    assert len(optimizer.masks) == 0
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert sparsifier.achieved_sparsity() >= 0.9
    for call in (sparsifier.step, sparsifier.dense_twin, sparsifier.state_dict, lambda: sparsifier.load_state_dict({})):
        with pytest.raises(RuntimeError, match=r"Sparsifier\..*: this sparsifier was removed; make a new one"):
            call()


@pytest.mark.parametrize("how", ["removed", "collected"])
def test_the_temporary_snapshot_goes(how, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model = net()
    sparsifier = Sparsifier(model, sgd(model), COMPRESSED)
    assert len(list(tmp_path.rglob("dense.pt"))) == 1
    if how == "removed":
        sparsifier.remove()
    else:
        del sparsifier
        gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_in_a_file_of_ones_own(tmp_path):
    model = net()
    before = copy.deepcopy(model.state_dict())
    Sparsifier(model, sgd(model), COMPRESSED, dense_snapshot=tmp_path / "twin.pt").remove()
    saved = torch.load(tmp_path / "twin.pt", weights_only=True)
    assert all(torch.equal(saved[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_the_twin_is_the_callers(where):
    model = net().eval()
    model.register_buffer("hidden", torch.ones(3), persistent=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sparsifier = Sparsifier(model, sgd(model), COMPRESSED, dense_snapshot=where)
    with torch.no_grad():
        model.hidden.zero_()
    for _ in range(2):
        twin = sparsifier.dense_twin()
        assert not twin.training
        assert torch.equal(twin.hidden, torch.ones(3))
        assert [type(layer) for layer in twin] == [nn.Linear, nn.LayerNorm, nn.Linear, nn.Linear]
        with torch.no_grad():
            for name, p in twin.named_parameters():
                assert p.requires_grad
                assert torch.equal(p, before[name])
                p.zero_()
    assert is_wrapped(model[0])


def test_the_model_and_its_optimizer_still_copy_and_pickle():
    model = net()
    optimizer = sgd(model)
    Sparsifier(model, optimizer, COMPRESSED)
    x = torch.randn(3, 4)
    for copied in (copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))):
        other, other_optimizer = copied((model, optimizer))
        assert torch.equal(other(x), model(x))
        assert {id(p) for p in other_optimizer.masks} == {id(other[i].weight) for i in (0, 2, 3)}


def test_prints_where_it_is():
    model = net()
    sparsifier = Sparsifier(model, sgd(model), SCHEDULE)
    sparsifier.step()
    assert repr(sparsifier) == (
        "Sparsifier(step 1 of 4, compressed phase 1 (steps 1 to 1), 112 weights of 3 parameters, sparsity=0.9, "
        "pattern='unstructured', scope='global')"
    )


def test_a_step_inside_a_phase_only_counts():
    model = net()
    sparsifier = Sparsifier(model, sgd(model), schedules.acdc(100, 50, 1, 1, 1, 1))
    sparsifier.model = sparsifier.optimizer = sparsifier._weights = None
    for _ in range(49):
        sparsifier.step()
    assert sparsifier.step_count == 49


def test_the_example_of_the_docstring_runs():
    code = textwrap.dedent(Sparsifier.__doc__.split("::\n\n")[1].split("\n\n")[0])
    model = net()
    batches = [(torch.randn(3, 4), torch.randn(3, 2))] * 2
    public = SimpleNamespace(MaskedSGD=MaskedSGD, schedules=schedules, Sparsifier=Sparsifier)
    names = {"acdc": public, "model": model, "loss": nn.functional.mse_loss, "loader": batches}
    exec(code, names)
    assert len(code.splitlines()) <= 12
    assert names["sparsifier"].step_count == names["schedule"].total_steps == 60
    assert names["sparsifier"].achieved_sparsity() == 1 - 11 / 112
    assert names["dense"][2].weight.count_nonzero() == 64


@pytest.mark.parametrize("how", ["assigned", "left the optimizer"])
def test_a_parameter_that_was_replaced_is_noticed(how):
    model = net()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, optimizer, SCHEDULE)
    state = sparsifier.state_dict()
    if how == "assigned":
        model.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()}, assign=True)
        where, names = "model", "0.weight, 2.weight, 3.weight"
    else:
        optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p is not model[2].weight]
        where, names = "optimizer", "2.weight"
    calls = {"step": sparsifier.step, "load_state_dict": lambda: sparsifier.load_state_dict(state)}
    for call in (*calls.values(), sparsifier.achieved_sparsity):
        with pytest.raises(ValueError, match=f"{where} must hold the parameters that it had .*got others for {names}"):
            call()
    assert sparsifier.phase.kind == "dense"
    assert not sparsifier.masks
