"""Training itself: bits that repeat, stopping and resuming at any step, and the choice of the pair."""

import dataclasses
import math
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch

from acdc_kernels.train import clock, data
from acdc_kernels.train.command import Options, run_training
from acdc_kernels.train.errors import UserError
from acdc_kernels.train.loop import Interrupted, Trainer, lr_factor
from acdc_kernels.train.presets import make_config
from acdc_kernels.train.progress import Progress
from acdc_kernels.train.run_folder import RunFolder

from .conftest import SHORT, quiet

STEPS = 9  # an epoch of the short run: 1197 training images, 128 a step


def parts(folder):
    """What the last checkpoint of a run holds."""
    return torch.load(RunFolder(folder).checkpoint, weights_only=True)["parts"]


def models(folder):
    """The two models of a run, and its last checkpoint's model and optimizer state."""
    run = RunFolder(folder)
    last = parts(folder)
    optimizer = {f"{key} {i}": value for i, state in last["optimizer"]["state"].items() for key, value in state.items()}
    tensors = {f"last {name}": tensor for name, tensor in last["model"].items()} | optimizer
    for kind in ("sparse", "dense"):
        if (folder / f"{kind}.safetensors").exists():
            tensors |= {f"{kind} {name}": tensor for name, tensor in run.load_model(kind)[0].items()}
    return tensors


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stop_at(monkeypatch, *stops):
    """Ctrl-C in these steps, counted from 1 over all runs; the list grows by one a step."""
    taken = []
    show = Progress.step

    def step_and_stop(self, *shown):
        taken.append(shown)
        if len(taken) in stops:
            signal.raise_signal(signal.SIGINT)
        show(self, *shown)

    monkeypatch.setattr(Progress, "step", step_and_stop)
    return taken


def history(folder):
    """The history without wall clock."""
    rows = parts(folder)["progress"]["history"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_two_runs_of_a_seed_are_equal_and_of_two_seeds_are_not(finished, tmp_path):
    run_training(Options(**SHORT, out=tmp_path / "again"), "a test", quiet)
    assert same_bits(models(finished()), models(tmp_path / "again"))
    assert history(finished()) == history(tmp_path / "again")
    for name in ("sparse.safetensors", "dense.safetensors", "config.json"):
        assert (finished() / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert not same_bits(models(finished()), models(finished(seed=1)))


# epochs of the short run: dense, compressed, dense, dense, compressed
@pytest.mark.parametrize(
    "stops",
    [
        [1],  # first step of all
        [STEPS - 1],  # the step before a flip
        [STEPS],  # the flip itself, at the end of an epoch
        [STEPS + 3],  # inside a compressed phase
        [2 * STEPS],  # momentum has just been reset
        [3 * STEPS + 4, 4 * STEPS + 1, 5 * STEPS - 1],  # three times, the last just before the end
    ],
    ids=str,
)
def test_stopping_and_resuming_changes_no_bit(finished, tmp_path, monkeypatch, stops):
    taken = stop_at(monkeypatch, *stops)
    said = []
    for stop in stops:
        with pytest.raises(Interrupted) as stopped:
            run_training(Options(**SHORT, out=tmp_path, resume=stop != stops[0]), "a test", said.append)
        assert (stopped.value.signal, len(taken)) == (signal.SIGINT, stop)
        assert not (tmp_path / "report.json").exists()
        assert said[-1].endswith(f" train --resume --out {tmp_path}")
    run_training(Options(out=tmp_path, resume=True), "a test", quiet)
    assert len(taken) == 5 * STEPS
    assert same_bits(models(finished()), models(tmp_path))
    assert history(finished()) == history(tmp_path)
    assert (tmp_path / "history.csv").read_text().count("\n") == 6


def test_signals_from_outside_then_resume(tmp_path):
    """Asked to stop or killed at random moments, four times over: the run that comes out is the uninterrupted one."""
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    long = SHORT | {"model": "mlp-64", "epochs": 60}  # far from done when a signal arrives, however late the reader is
    run_training(Options(**long, out=tmp_path / "whole"), "a test", quiet)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "acdc_kernels", "train", "--out", str(out)]
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in long.items()]
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)}
    for stop in (signal.SIGINT, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True, env=environment) as run:
            for line in run.stdout:
                if line.startswith("epoch "):
                    time.sleep(chance.uniform(0, 0.1))
                    run.send_signal(stop)
                    break
            said = run.stdout.read()
        assert run.returncode == (-stop if stop == signal.SIGKILL else 128 + stop), f"seed {seed}"
        if stop != signal.SIGKILL:
            assert "go on with:\n  " in said
            assert f" train --resume --out {out}\n" in said
        settings = ["--resume"]
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert f"going on with {out} at step " in again.stdout
    assert same_bits(models(tmp_path / "whole"), models(out)), f"seed {seed}"
    assert history(tmp_path / "whole") == history(out), f"seed {seed}"
    assert [file.name for file in (out / "checkpoint").iterdir()] == ["last.pt"]


def test_a_second_signal_acts_as_usual():
    # Where the suite runs in the background, a shell has made Ctrl-C ignored for it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with clock.StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("schedule", ["acdc", "prune-once", "prune-late"])
def test_exactly_the_asked_number_of_weights_is_kept(finished, schedule):
    folder = RunFolder(finished(schedule))
    state, facts = folder.load_model("sparse")
    weights = [tensor for name, tensor in state.items() if tensor.ndim == 2]
    total = sum(weight.numel() for weight in weights)
    assert sum(int(weight.count_nonzero()) for weight in weights) == total - round(0.9 * total)
    masked = torch.cat([weight[weight == 0] for weight in weights])
    assert not masked.signbit().any()
    assert facts["schedule"] == schedule


def test_a_mask_is_fixed_inside_a_phase_and_prune_once_never_changes_it(finished):
    last = parts(finished("prune-once"))
    best, _ = RunFolder(finished("prune-once")).load_model("sparse")
    for name in ("1.weight", "3.weight", "5.weight"):
        assert torch.equal(best[name] != 0, last["model"][name] != 0)


def test_the_pair_is_the_best_epoch_of_its_last_phase(finished):
    # kind: first and last epoch of the last phase of that kind in the 5-epoch acdc run
    phases = {"dense": (3, 4), "sparse": (5, 5)}
    rows = history(finished())
    for kind, (first, last) in phases.items():
        _, facts = RunFolder(finished()).load_model(kind)
        candidates = [row for row in rows if first <= row["epoch"] <= last]
        best = max(candidates, key=lambda row: row["val_accuracy"])
        assert (facts["epoch"], facts["val_accuracy"]) == (best["epoch"], best["val_accuracy"])


def test_an_epoch_before_a_flip_is_judged_before_it(finished):
    """Pruning is part of `Sparsifier.step`; the dense epoch just before it must not be scored as a sparse one."""
    rows = history(finished("prune-late"))
    assert [row["sparsity"] > 0.5 for row in rows] == [False] * 4 + [True]
    dense, _ = RunFolder(finished("prune-late")).load_model("dense")
    assert all(tensor.count_nonzero() > 0.9 * tensor.numel() for tensor in dense.values())


def test_history_counts_flops_from_actual_nonzeros(finished):
    for row in history(finished()):
        share = 0.1 if row["phase"] == "compressed" else 1.0
        assert row["flops"] == pytest.approx(share, abs=0.12)
        # an MLP's cost is that of its weights, up to bias and ReLU
        assert row["flops"] == pytest.approx(1 - row["sparsity"], abs=0.003)


def test_divergence_stops_the_run(tmp_path):
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+: training diverged; try a lower --lr"):
        run_training(Options(**{**SHORT, "lr": 1e6}, out=tmp_path / "run"), "a test", quiet)


def test_a_batch_larger_than_the_data():
    digits = data.load("digits", validation=0.5, seed=0)
    with pytest.raises(UserError, match="batch-size: must be at most 719 training samples, got 720"):
        Trainer(make_config("demo", batch_size=720, threads=1), digits)


@pytest.mark.parametrize("part", ["validation", "test"])
def test_a_part_without_samples_is_refused_before_training(part):
    digits = data.load("digits", validation=0.5, seed=0)
    empty = data.TensorSplit(torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(UserError, match=f"data: digits has no {part} samples to .*, got 719 to train on"):
        Trainer(make_config("demo", threads=1), dataclasses.replace(digits, **{part: empty}))


def test_other_data_is_refused_when_a_run_goes_on(tmp_path):
    digits = data.load("digits", validation=0.5, seed=0)
    one, same, other = (
        Trainer(make_config("demo", model="mlp-8", threads=1), dataclasses.replace(digits, **marks))
        for marks in (
            {"fingerprint": "Python 3.11"},
            {"fingerprint": "Python 3.11", "source": "elsewhere"},
            {"fingerprint": "Python 3.12"},
        )
    )
    folder = RunFolder(tmp_path)
    folder.create(one.config)
    one.save(folder)
    assert same.restore(folder)
    with pytest.raises(UserError, match=r"the data of this run is Python 3.11, digits here is Python 3.12; go on with"):
        other.restore(folder)


def test_learning_rate_warms_up_then_falls_as_a_cosine():
    factors = [lr_factor(step, warmup=4, total=104) for step in range(105)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[54] == pytest.approx(0.5)
    assert factors[104] == pytest.approx(0.0)
    assert all(later < earlier for earlier, later in pairwise(factors[4:]))
    assert math.isclose(lr_factor(0, warmup=0, total=10), 1.0)


def test_the_clock_knows_every_step(finished):
    times = parts(finished())["progress"]["seconds"]
    assert {kind: len(each) for kind, each in times.items()} == {
        "dense": 3 * STEPS,
        "compressed": 2 * STEPS,
        "flip": 3,
        "planning": 2,
        "evaluation": 5,
    }
    assert clock.Clock({"dense": [0.1, 0.2, 0.6], "flip": []}).summary() == {
        "dense": {"count": 3, "seconds": pytest.approx(0.9), "median_ms": pytest.approx(200)},
        "flip": {"count": 0, "seconds": 0, "median_ms": None},
    }
