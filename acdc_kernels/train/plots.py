"""The pictures: one run's curves as the paper's first figure draws them, and several runs beside each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette: told apart with any colour vision
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442"
LINES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (SKY, "-"))
SHADE = "#E8E8E8"
FORMATS = (".png", ".pdf", ".svg")


def plot_run(report: Mapping[str, Any], path: Path) -> None:
    """Accuracy, sparsity and the cost of a step over epochs; compressed phases shaded, the pair's epochs marked."""
    history, config, models = report["history"], report["config"], report["models"]
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(8, 6.4), dpi=150, layout="constrained")
    upper, lower, cost = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
    for axes in (upper, lower, cost):
        _shade(axes, history)
        _style(axes)
    sparsity = "" if config["schedule"] == "dense" else f" at {config['sparsity']:.4g} sparsity"
    upper.set_title(f"{config['preset']}: {config['schedule']}{sparsity}, seed {config['seed']}", loc="left")

    upper.plot(epochs, [row["train_accuracy"] for row in history], color=ORANGE, linestyle="--", label="training")
    upper.plot(
        epochs, [row["val_accuracy"] for row in history], color=BLUE, marker=".", label="validation", clip_on=False
    )
    look = {"edgecolors": "black", "linewidths": 0.8, "zorder": 3, "clip_on": False}
    if model := models["dense"]:
        name = "dense twin" if models["sparse"] else "dense model"
        upper.scatter(model["epoch"], model["val_accuracy"], s=60, c=GREEN, marker="D", label=name, **look)
    if model := models["sparse"]:
        upper.scatter(model["epoch"], model["val_accuracy"], s=180, c=YELLOW, marker="*", label="sparse model", **look)
    validation = [row["val_accuracy"] for row in history]
    highest = max(*validation, *(row["train_accuracy"] for row in history))
    margin = 0.06 * (highest - min(validation)) + 1e-3
    upper.set_ylim(
        min(validation) - margin, highest + margin
    )  # training may begin below: early, and averaged over the epoch
    upper.set_ylabel("accuracy")

    edges = [0, *epochs]
    lower.stairs([row["sparsity"] for row in history], edges, color=SKY, fill=True, alpha=0.6, label="sparsity")
    lower.stairs([row["sparsity"] for row in history], edges, color=BLUE, linewidth=1.5)
    lower.set_ylim(0, 1)
    lower.set_xlim(0, epochs[-1])
    lower.set_ylabel("sparsity")
    dense = [row["seconds"] for row in history if row["phase"] == "dense"]
    cost.stairs([row["flops"] for row in history], edges, color=GREEN, linewidth=1.5, label="FLOPs / dense step's")
    if dense:
        time = [row["seconds"] / statistics.median(dense) for row in history]
        cost.stairs(time, edges, color=PURPLE, linewidth=1.5, label="time / dense step's")
    cost.set_ylim(bottom=0)
    cost.set_ylabel("cost")
    cost.set_xlabel("epoch")
    cost.xaxis.set_major_locator(MaxNLocator(integer=True))

    handles = upper.get_legend_handles_labels()[0] + cost.get_legend_handles_labels()[0]
    if any(row["phase"] == "compressed" for row in history):
        handles.append(Patch(facecolor=SHADE, label="compressed phase"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path)


def plot_groups(groups: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Validation accuracy over epochs: for each group of runs their mean as a line and their range as a band."""
    figure = Figure(figsize=(8, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    _style(axes)
    for i, (name, reports) in enumerate(groups.items()):
        colour, style = LINES[i % len(LINES)]
        epochs = [row["epoch"] for row in reports[0]["history"]]
        curves = list(zip(*([row["val_accuracy"] for row in report["history"]] for report in reports), strict=True))
        axes.fill_between(epochs, list(map(min, curves)), list(map(max, curves)), color=colour, alpha=0.15, linewidth=0)
        axes.plot(epochs, list(map(statistics.mean, curves)), color=colour, linestyle=style, marker=".", label=name)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path)


def _shade(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    for row in history:
        if row["phase"] == "compressed":
            axes.axvspan(row["epoch"] - 1, row["epoch"], color=SHADE, linewidth=0, zorder=0)


def _style(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    axes.grid(axis="y", color="#CCCCCC", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
