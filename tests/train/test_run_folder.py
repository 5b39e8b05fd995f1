"""A folder holds one run: what is refused, and that refusing changes nothing."""

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from acdc_kernels import save_checkpoint
from acdc_kernels.checkpoint import archive
from acdc_kernels.train import replacing
from acdc_kernels.train.cli import app
from acdc_kernels.train.command import Options, run_training
from acdc_kernels.train.errors import UserError
from acdc_kernels.train.presets import make_config
from acdc_kernels.train.run_folder import RunFolder

from .conftest import SHORT, quiet


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(match, **options):
    with pytest.raises(UserError, match=match):
        run_training(Options(**{**SHORT, **options}), "a test", quiet)


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of a finished run that a test may spoil."""
    return shutil.copytree(finished(), tmp_path / "copy")


def test_a_finished_run_has_every_file(finished):
    expected = "checkpoint config.json curves.png dense.safetensors history.csv report.json sparse.safetensors"
    assert " ".join(sorted(path.name for path in finished().iterdir())) == expected
    assert [path.name for path in (finished() / "checkpoint").iterdir()] == ["last.pt"]
    dense = sorted(path.name for path in finished("dense").iterdir())
    assert "sparse.safetensors" not in dense
    assert "dense.safetensors" in dense


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"holds another run \(seed 0 there, 1 now\); choose another --out"),
        ({"kernels": "dense"}, r"holds another run \(kernels 'model' there, 'dense' now\)"),
        ({"lr": 0.5}, r"holds another run \(lr [\d.]+ there, 0.5 now\)"),
        (
            {"schedule": "dense"},
            r"holds another run \(schedule 'acdc' there, 'dense' now; .*sparsity 0.9 there, 0.0 now",
        ),
    ],
)
def test_another_run_is_refused(copy, changes, message, resume):
    before = content(copy)
    refused(message, out=copy, resume=resume, **changes)
    assert content(copy) == before


def test_this_run_needs_resume(copy):
    before = content(copy)
    refused("holds this run, finished; continue it with --resume", out=copy)
    (copy / "report.json").unlink()
    refused("holds this run, unfinished; continue it with --resume", out=copy)
    (copy / "report.json").write_bytes(before[next(path for path in before if path.name == "report.json")])
    assert content(copy) == before


def test_resuming_a_finished_run_says_so(copy):
    before, said = content(copy), []
    run_training(Options(out=copy, resume=True), "a test", said.append)
    assert said[0].startswith(f"{copy} is finished")
    assert "sparse model" in said[1]
    assert content(copy) == before


def test_a_run_stopped_before_its_report_gets_one(copy):
    (copy / "report.json").unlink()
    (copy / "curves.png").unlink()
    run_training(Options(out=copy, resume=True), "a test", quiet)
    assert (copy / "report.json").is_file()
    assert (copy / "curves.png").is_file()


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("words")
    refused("holds files but no run", out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    refused("must be a folder, is a file", out=tmp_path / "thesis.tex")


def test_resuming_nothing(tmp_path):
    with pytest.raises(UserError, match="holds no run to resume"):
        run_training(Options(out=tmp_path / "typo", resume=True), "a test", quiet)
    assert not (tmp_path / "typo").exists()


def test_with_a_preset_resume_starts_what_is_not_there(tmp_path):
    said = []
    run_training(Options(**{**SHORT, "epochs": 4}, out=tmp_path / "new", resume=True), "a test", said.append)
    assert said[0] == f"nothing to resume in {tmp_path / 'new'}: starting the run"
    assert RunFolder(tmp_path / "new").finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "epochs: must be at least 4"),
        ({"sparsity": 1.5}, "sparsity: must be in"),
        ({"batch_size": 5000}, "batch-size: must be at most"),
        ({"dataset": "fashion-mnist", "data_dir": Path("/nowhere")}, "fashion-mnist is not in /nowhere"),
    ],
)
def test_bad_settings_write_nothing(tmp_path, options, message):
    refused(message, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "last.pt is not a checkpoint .*, or is truncated"),
        (lambda path: path.write_bytes(b""), "last.pt is not a checkpoint .*, or is truncated"),
        (lambda path: torch.save({"format": 1, "model": {}}, path), "last.pt is not a checkpoint of acdc-kernels"),
        (lambda path: save_checkpoint(path, step=3), "last.pt must be .* but it holds no part 'model'; it holds no"),
    ],
    ids=["truncated", "empty", "of the first version", "incomplete"],
)
def test_a_broken_checkpoint(copy, damage, message):
    (copy / "report.json").unlink()
    damage(copy / "checkpoint" / "last.pt")
    before = content(copy)
    with pytest.raises(UserError, match=message):
        run_training(Options(out=copy, resume=True), "a test", quiet)
    assert content(copy) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ""),
        ("[]", ""),
        ("{}", ""),
        ('{"format": 3, "epochs": 3}', "missing"),
        ('{"format": 2, "preset": "demo"}', r"it is of format 2, this version of acdc-kernels \(.+\) has 3"),
        ('{"format": 99}', r"it is of format 99, this version of acdc-kernels \(.+\) has 3"),
        ("null", "config: must be an object, got 'None'"),
        ('{"format": [2]}', "config.format: must be a whole number"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_broken_configuration(copy, text, message):
    (copy / "config.json").write_text(text)
    before = content(copy)
    with pytest.raises(UserError, match=rf"config.json: not the configuration of a run \(.*{message}"):
        run_training(Options(out=copy, resume=True), "a test", quiet)
    assert content(copy) == before


OF_WRONG_TYPE = {
    "epochs": ["8", None, 5.0, True, 10**30],
    "seed": ["x", 1.5],
    "threads": [None],
    "lr": [None, "x", float("inf")],
    "momentum": ["x"],
    "augment": [1],
    "preset": [["demo"], 3],
    "model": [7],
    "data_args": [3],
    "phases": [3],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OF_WRONG_TYPE.items() for value in values])
def test_a_configuration_with_a_value_of_another_type(copy, key, value):
    config = json.loads((copy / "config.json").read_text()) | {key: value}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config.json: not the configuration of a run \(config.{key}: must be "):
        run_training(Options(out=copy, resume=True), "a test", quiet)


def test_a_whole_number_may_stand_where_a_number_is_asked_for(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"lr": 1}))
    assert RunFolder(copy).config().lr == 1


def test_a_configuration_with_unknown_settings(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"colour": "red"}))
    with pytest.raises(UserError, match=r"config.json: not the configuration of a run .*'colour'"):
        RunFolder(copy).config()


def test_a_full_disk_stops_the_run_which_can_be_resumed(finished, tmp_path, monkeypatch):
    saves, seal = [], archive._seal

    def full_the_third_time(file):
        saves.append(file)
        if len(saves) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(file)

    monkeypatch.setattr(archive, "_seal", full_the_third_time)
    out = tmp_path / "run"
    stopped = CliRunner().invoke(
        app, ["train", *(f"--{k.replace('_', '-')}={v}" for k, v in SHORT.items()), f"--out={out}"]
    )
    assert (stopped.exit_code, stopped.stderr.count("\n")) == (1, 1)
    assert "No space left on device; what was there before is untouched" in stopped.stderr
    assert str(out / "checkpoint" / "last.pt") in stopped.stderr
    assert [file.name for file in (out / "checkpoint").iterdir()] == ["last.pt"]
    run_training(Options(out=out, resume=True), "a test", quiet)
    for name in ("sparse.safetensors", "dense.safetensors"):
        assert (out / name).read_bytes() == (finished() / name).read_bytes()


@pytest.mark.parametrize("resume", [False, True])
def test_a_disk_that_is_full_from_the_first_byte_leaves_a_usable_folder(tmp_path, monkeypatch, resume):
    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    out, settings = tmp_path / "run", SHORT | {"epochs": 4}
    with monkeypatch.context() as patch:
        patch.setattr(replacing.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            run_training(Options(**settings, out=out), "a test", quiet)
    assert list(out.iterdir()) == []
    run_training(Options(**settings, out=out, resume=resume), "a test", quiet)
    assert RunFolder(out).finished


def test_what_a_run_killed_while_it_made_its_folder_left_is_no_obstacle(tmp_path):
    config = make_config("demo", threads=1)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / ".config.json.tmp").write_text('{"format"')
    RunFolder(tmp_path).check(config, resume=False)
    (tmp_path / "checkpoint" / "last.pt").touch()
    with pytest.raises(UserError, match="holds files but no run"):
        RunFolder(tmp_path).check(config, resume=False)


def test_models_are_written_with_shared_tensors_and_the_mode_of_the_umask(tmp_path):
    weight = torch.arange(6.0).view(2, 3)
    state = {"tied": weight, "same": weight, "turned": weight.T}
    before = os.umask(0o027)
    try:
        RunFolder(tmp_path).save_model("sparse", state, {"epoch": 3})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "sparse.safetensors").stat().st_mode) == 0o640
    read, facts = RunFolder(tmp_path).load_model("sparse")
    assert facts == {"epoch": 3}
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_json("report.json", {"good": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("report.json", {"bad": float("nan")})
    assert json.loads((tmp_path / "report.json").read_text()) == {"good": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
