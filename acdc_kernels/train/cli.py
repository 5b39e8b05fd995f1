"""The commands ``info``, ``train``, ``bench`` and ``report``: options in, messages and exit codes out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .._sparsifier_products import KERNELS
from ..policy.scopes import SCOPES
from .data import DATASETS
from .errors import UserError
from .presets import OPTIMIZERS, PRECISIONS, PRESETS, SCHEDULES

app = typer.Typer(
    help="AC/DC sparse training with native kernels (Peste et al., NeurIPS 2021, arXiv 2106.12379).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help keeps the lines of tables and examples
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _choice(name: str, values: tuple[str, ...]) -> type[Enum]:
    return Enum(name, {value: value for value in values}, type=str)


PresetName = _choice("PresetName", tuple(PRESETS))
DataName = _choice("DataName", DATASETS)
ScheduleName = _choice("ScheduleName", SCHEDULES)
ScopeName = _choice("ScopeName", SCOPES)
OptimizerName = _choice("OptimizerName", OPTIMIZERS)
PrecisionName = _choice("PrecisionName", PRECISIONS)
KernelsName = _choice("KernelsName", KERNELS)
BenchOp = _choice("BenchOp", ("topk", "update", "linear", "train"))
DeviceName = _choice("DeviceName", ("cpu", "cuda"))

TRAIN_HELP = "\n".join(
    (
        "Train a sparse model and its dense twin, and write a run folder.",
        "",
        "The folder gets both models (safetensors), curves.png, history.csv, report.json and a checkpoint. "
        "Ctrl-C saves and says how to go on.",
        "",
        "\b\nPresets:",
        *(f"  {preset.name:<18} {preset.summary}" for preset in PRESETS.values()),
        "",
        "\b\nSchedules, of equally many epochs:",
        "  acdc               dense warm-up, then compressed and dense phases in turn, compressed at the end",
        "  dense              never pruned",
        "  prune-once         pruned once, after the warm-up, and kept so",
        "  prune-late         pruned once, where the last compressed phase of acdc begins",
    )
)


def _examples(*lines: str) -> str:
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show what the user can put right as one line and leave with exit code 1."""
    try:
        yield
    except (UserError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


@app.command(
    short_help="What was built, what this machine has, which kernels run.",
    epilog=_examples(
        "acdc-kernels info",
        "ACDC_CPU_ISA=avx2 acdc-kernels info    with the kernels of another ISA level",
    ),
)
def info() -> None:
    """What was built, what this machine has, and which kernels can run and why not."""
    from .info import info_text

    typer.echo(info_text())


@app.command(
    help=TRAIN_HELP,
    short_help="Train a sparse model and its dense twin.",
    epilog=_examples(
        "acdc-kernels train                                  the demo, under a minute",
        "acdc-kernels train --preset fashion-mnist --seed 1  a CNN on the 60,000 images",
        "acdc-kernels train --schedule dense                 the dense baseline of the demo",
        "acdc-kernels train --sparsity 0.95 --out runs/95    another sparsity, another folder",
        "acdc-kernels train --pattern 2:4                    two of every four inputs are zero",
        "acdc-kernels train --kernels dense                  dense products, with zeros in the weights",
        "acdc-kernels train --optimizer adamw --lr 0.001     AdamW instead of SGD",
        "acdc-kernels train --resume --out runs/95           go on where Ctrl-C stopped it",
    ),
)
def train(
    preset: Annotated[
        PresetName | None, typer.Option(help="Data, model and hyper-parameters (default: demo).", metavar="NAME")
    ] = None,
    schedule: Annotated[
        ScheduleName | None, typer.Option(help="When to prune (default: acdc).", metavar="NAME")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of weights that is zero in compressed phases (default: the pattern's)."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Which shapes of zeros are allowed: unstructured; n:m (n of m consecutive inputs are kept); "
            "2:4-transposable (2:4 both ways); block:RxC (R outputs by C inputs, kept or pruned together) "
            "(default: the preset's).",
            metavar="PATTERN",
        ),
    ] = None,
    scope: Annotated[
        ScopeName | None,
        typer.Option(help="global: all layers share one budget; layer: each has the same sparsity (default: global)."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Length; the schedule's parts scale with it (default: the preset's).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples a step (default: the preset's).")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Highest learning rate, before the cosine (default: the preset's).")
    ] = None,
    optimizer: Annotated[
        OptimizerName | None,
        typer.Option(help="sgd with momentum, or adamw, which needs an --lr of its own (default: the preset's)."),
    ] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="fp32, or bf16: mixed precision (default: the preset's).")
    ] = None,
    kernels: Annotated[
        KernelsName | None,
        typer.Option(
            help="Products of compressed phases. auto: for each layer the fastest, measured where a phase begins; "
            "model: by a cost model, so that runs repeat to the bit; dense; sparse: wherever a layer can; "
            "fp16: auto, with half-precision forward products to choose from (default: the preset's)."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides initial weights, order and validation split (default: 0).")
    ] = None,
    data: Annotated[DataName | None, typer.Option(help="Data set (default: the preset's).", metavar="NAME")] = None,
    data_args: Annotated[
        str | None, typer.Option(help="Settings of the data set (default: the preset's).", metavar="JSON")
    ] = None,
    augment: Annotated[
        bool | None,
        typer.Option(
            "--augment/--no-augment", help="Random crops and flips of training images (default: the preset's)."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model, by name or package.module:callable (default: the preset's).", metavar="NAME"),
    ] = None,
    model_args: Annotated[
        str | None, typer.Option(help="Keyword arguments of a model by import path.", metavar="JSON")
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of the data set (fashion-mnist, cifar10, cifar100, imagefolder).", metavar="FOLDER"),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch Fashion-MNIST (31 MB) or CIFAR (170 MB) if it is missing.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads (default: torch's).")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run folder (default: runs/PRESET-SCHEDULE-SPARSITY-sSEED).", metavar="FOLDER"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, bit for bit.")] = False,
) -> None:
    from .command import Options, run_training
    from .loop import Interrupted

    options = Options(
        preset=_value(preset),
        dataset=_value(data),
        data_args=data_args,
        augment=augment,
        model=model,
        model_args=model_args,
        optimizer=_value(optimizer),
        pattern=pattern,
        precision=_value(precision),
        kernels=_value(kernels),
        schedule=_value(schedule),
        scope=_value(scope),
        seed=seed,
        threads=threads,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        sparsity=sparsity,
        data_dir=data_dir,
        download=download,
        out=out,
        resume=resume,
    )
    try:
        with _plain_errors():
            run_training(options, shlex.join(["acdc-kernels", *sys.argv[1:]]), typer.echo)
    except Interrupted as stopped:
        raise typer.Exit(128 + stopped.signal) from None


@app.command(
    short_help="Time kernels and training steps against torch and other peers.",
    epilog=_examples(
        "acdc-kernels bench topk --quick",
        "acdc-kernels bench update --threads 1 --threads 2 --json update.json",
        "acdc-kernels bench linear --json linear.json",
    ),
)
def bench(
    op: Annotated[
        BenchOp,
        typer.Argument(
            help="topk: top-k masks; update: the masked optimizer step; linear: sparse linear layers, and the planned "
            "layer against the dense one; train: whole dense and compressed steps, and flips."
        ),
    ],
    device: Annotated[DeviceName, typer.Option(help="Where it runs.")] = DeviceName.cpu,
    threads: Annotated[
        list[int] | None,
        typer.Option(help="Number of CPU threads; may be repeated (default: 1 and 2).", metavar="N"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="The main case only, few repetitions.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows there too, as they come.", metavar="FILE")
    ] = None,
) -> None:
    """Time kernels, layers or whole training steps against torch and other peers, interleaved in the same run."""
    try:
        from ..benchmarks.run import run
    except ModuleNotFoundError as error:
        if error.name != "acdc_kernels.benchmarks":
            raise
        typer.echo("error: the benchmarks come with an installed package: pip install -e .", err=True)
        raise typer.Exit(1) from error

    raise typer.Exit(run(op.value, device.value, threads, quick, json_file))


@app.command(
    short_help="Tables and plots of runs and benchmarks.",
    epilog=_examples(
        "acdc-kernels report runs/demo-acdc-0.9-s0",
        "acdc-kernels report benchmarks/results/fashion-mnist/*.json --markdown table.md --plot curves.png",
    ),
)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, report.json files, or files of bench --json.", metavar="RUN_OR_JSON"),
    ],
    markdown: Annotated[
        Path | None, typer.Option(help="Write the table there too, as Markdown.", metavar="FILE")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves there (png, pdf, svg).", metavar="FILE")] = None,
) -> None:
    """One run in full, or several compared: mean ± standard deviation over the seeds of equal runs."""
    from .command import show_reports

    with _plain_errors():
        show_reports(runs, markdown, plot, typer.echo)


def _value(choice: Enum | None) -> str | None:
    return None if choice is None else choice.value
