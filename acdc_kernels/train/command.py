"""What the commands ``train`` and ``report`` do: check everything, then write."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import data, plots
from .comparison import comparison, comparison_markdown, costs, group
from .documents import check, parse
from .errors import UserError
from .loop import Interrupted, Trainer
from .presets import RunConfig, make_config
from .report import build_report, read_report, summary
from .run_folder import RunFolder
from .tables import markdown_table, text_table

Say = Callable[[str], None]
CHANGEABLE = (
    *("dataset", "data_args", "augment", "model", "model_args", "optimizer", "pattern", "precision", "scope"),
    *("epochs", "batch_size", "lr", "sparsity", "kernels"),
)
BENCH_ROW = {
    **dict.fromkeys(("op", "case", "dtype", "peer"), str),
    "threads": int,
    **dict.fromkeys(("ours_ms", "peer_ms", "speedup"), (float,)),
}


@dataclass(frozen=True)
class Options:
    """The options of ``train``; None where the user gave none."""

    preset: str | None = None
    dataset: str | None = None
    data_args: str | None = None
    model: str | None = None
    model_args: str | None = None
    optimizer: str | None = None
    pattern: str | None = None
    precision: str | None = None
    kernels: str | None = None
    augment: bool | None = None
    schedule: str | None = None
    scope: str | None = None
    seed: int | None = None
    threads: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    sparsity: float | None = None
    data_dir: Path | None = None
    download: bool = False
    out: Path | None = None
    resume: bool = False


def run_training(options: Options, command: str, say: Say) -> RunFolder:
    """Train as `options` say. Raises UserError before anything is written, Interrupted once a stopped run is saved."""
    config, folder = resolve(options)
    folder.check(config, options.resume)
    if folder.finished:
        say(f"{folder.path} is finished; this is its report.\n")
        _show(read_report(folder.path), folder, say)
        return folder
    dataset = data.load(
        config.dataset,
        validation=config.validation,
        seed=config.seed,
        folder=options.data_dir,
        download=options.download,
        augment=config.augment,
        data_args=config.data_args,
    )
    try:
        trainer = Trainer(config, dataset)
    except UserError:
        raise
    except (TypeError, ValueError, KeyError) as error:  # the library's own checks of sparsity, scope and schedule
        raise UserError(str(error)) from error
    if trainer.restore(folder):
        say(f"going on with {folder.path} at step {trainer.step} of {trainer.total_steps}")
    elif options.resume:
        say(f"nothing to resume in {folder.path}: starting the run")
    folder.create(config)
    say(_headline(trainer))
    try:
        trainer.run(folder)
    except Interrupted:
        say(f"\nsaved at step {trainer.step} of {trainer.total_steps}; go on with:\n  {_resume(options, folder)}")
        raise
    report = build_report(trainer, folder, command)
    plots.plot_run(report, folder.curves)
    folder.write_json("report.json", report)  # last: its presence says that the run is finished
    say("")
    _show(report, folder, say)
    return folder


def resolve(options: Options) -> tuple[RunConfig, RunFolder]:
    """The configuration and folder that `options` mean; with resume, what is not given comes from the run there."""
    there: dict[str, Any] = {}
    if options.resume and options.out is not None:
        folder = RunFolder(options.out)
        if folder.holds_run:
            there = folder.config().to_dict()
        elif options.preset is None:
            raise UserError(f"{options.out}: holds no run to resume")

    def chosen(name: str, default: Any = None) -> Any:
        given = getattr(options, name)
        return there.get(name, default) if given is None else given

    config = make_config(
        chosen("preset", "demo"),
        schedule=chosen("schedule", "acdc"),
        seed=chosen("seed", 0),
        threads=chosen("threads", torch.get_num_threads()),
        **{name: chosen(name) for name in CHANGEABLE},
    )
    return config, RunFolder(options.out or Path(config.default_folder))


def _resume(options: Options, folder: RunFolder) -> str:
    place = [] if options.data_dir is None else ["--data-dir", str(options.data_dir)]
    program = ["acdc-kernels"] if shutil.which("acdc-kernels") else [sys.executable, "-m", "acdc_kernels"]
    return shlex.join([*program, "train", "--resume", "--out", str(folder.path), *place])


def _headline(trainer: Trainer) -> str:
    config, data = trainer.config, trainer.data
    phases = ", ".join(f"{kind} {epochs}" for kind, epochs in trainer.phase_epochs())
    return (
        f"{config.preset}: {config.model} with {trainer.flops.weights:,} weights\n"
        f"{data.source}: {len(data.train):,} training, {len(data.validation):,} validation, "
        f"{len(data.test):,} test {'images' if data.unit == 'images' else 'sequences'}\n"
        f"{config.schedule}, {config.epochs} epochs of {trainer.steps_per_epoch} steps: {phases}"
    )


def _show(report: dict[str, Any], folder: RunFolder, say: Say) -> None:
    models = " and ".join(f"{kind}.safetensors" for kind in ("sparse", "dense") if report["models"][kind])
    say(f"{summary(report)}\n\ncurves  {folder.curves}\nmodels  {models}, report.json and history.csv beside it")


def show_reports(paths: Sequence[Path], markdown: Path | None, plot: Path | None, say: Say) -> None:
    """Print the tables of `paths`; write them as Markdown and the curves where asked."""
    for file in (markdown, plot):
        if file is not None and not file.resolve().parent.is_dir():
            raise UserError(f"{file}: its folder does not exist")
    if plot is not None and plot.suffix.lower() not in plots.FORMATS:
        raise UserError(f"plot: must be a file ending in {', '.join(plots.FORMATS)}, got {plot}")
    benches = [content for path in paths if (content := _bench_rows(path)) is not None]
    if benches:
        if len(benches) < len(paths) or plot is not None:
            raise UserError("report: benchmark files go without run folders and without --plot")
        header, rows = _bench_table([row for rows in benches for row in rows])
        text, marked = text_table(header, rows), markdown_table(header, rows, left=4)
    else:
        reports = [read_report(path) for path in paths]
        text = summary(reports[0]) if len(reports) == 1 else _compared(reports)
        marked = comparison_markdown(reports)
    say(text)
    if markdown is not None:
        markdown.write_text(marked + "\n")
        say(f"\ntable  {markdown}")
    if plot is not None:
        plots.plot_run(reports[0], plot) if len(reports) == 1 else plots.plot_groups(group(reports), plot)
        say(f"\ncurves  {plot}")


def _compared(reports: Sequence[dict[str, Any]]) -> str:
    return f"{text_table(*comparison(reports))}\n\n{text_table(*costs(reports))}"


def _bench_rows(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a file of ``bench --json``; None if `path` is something else."""
    if not path.is_file():
        return None
    try:
        content = parse(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict) or "rows" not in content:
        return None
    try:
        check(content["rows"], [BENCH_ROW], "rows")
    except ValueError as error:
        raise UserError(f"{path}: not a file of bench --json ({error})") from error
    return content["rows"]


def _bench_table(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    header = ["op", "case", "dtype", "peer", "threads", "ours ms", "peer ms", "speedup"]

    def number(value: float | None, unit: str = "") -> str:
        return "-" if value is None else f"{value:.2f}{unit}"

    return header, [
        [
            *(str(row[key]) for key in ("op", "case", "dtype", "peer", "threads")),
            *(number(row[key]) for key in ("ours_ms", "peer_ms")),
            number(row["speedup"], "x"),
        ]
        for row in rows
    ]
