"""Several runs in tables: what their models are, and what training them cost."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UserError
from .saving import planning_share, saving, training_seconds
from .tables import duration, markdown_table, mean_and_spread, percent

# what configurations have that were reported before these settings came
ADDED = {
    "optimizer": "sgd",
    "pattern": "unstructured",
    "precision": "fp32",
    "kernels": "dense",
    "augment": False,
    "model_args": "{}",
    "data_args": "{}",
}


def group(reports: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Reports of runs that differ in nothing but seed and threads, under a name for each such group, in order.

    Raises UserError if one run is there twice.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        config = ADDED | report["config"]
        setting = {key: value for key, value in config.items() if key not in ("seed", "threads")}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(report)
    named: dict[str, list[dict[str, Any]]] = {}
    for members in groups.values():
        config = members[0]["config"]
        seeds = sorted(report["config"]["seed"] for report in members)
        if len(set(seeds)) < len(seeds):
            raise UserError(
                f"report: {config['preset']} {config['schedule']} is given twice for one seed (seeds {seeds})"
            )
        name = f"{config['preset']} {config['schedule']}"
        if (pattern := config.get("pattern", "unstructured")) != "unstructured":
            name += f" {pattern}"
        if config["schedule"] != "dense":
            name += f" {config['sparsity']:.0%}"
            if (kernels := config.get("kernels", "auto")) != "auto":
                name += f" kernels={kernels}"
        while name in named:  # same name, other settings
            name += "'"
        named[name] = members
    return named


def comparison(reports: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a table with a row a model and group: mean ± sample standard deviation over seeds."""
    header = [
        "run",
        "model",
        "epochs",
        "seeds",
        "test accuracy",
        "validation",
        "sparsity",
        "inference FLOPs",
        "training FLOPs",
    ]
    rows = []
    for name, members in group(reports).items():
        config = members[0]["config"]
        for kind, label in (
            ("sparse", "sparse"),
            ("dense", "dense" if config["schedule"] == "dense" else "dense twin"),
        ):
            models = [report["models"][kind] for report in members]
            # what a pruned-once run had before pruning is no result of it
            if None in models or (kind == "dense" and config["schedule"].startswith("prune")):
                continue
            training = [report["flops"]["training"] for report in members]
            rows.append(
                [
                    name,
                    label,
                    str(config["epochs"]),
                    str(len(members)),
                    mean_and_spread([model["test_accuracy"] for model in models], 2),
                    mean_and_spread([model["val_accuracy"] for model in models], 2),
                    percent(sum(model["sparsity"] for model in models) / len(models)),
                    mean_and_spread([model["inference_flops"] for model in models]),
                    mean_and_spread(training),
                ]
            )
    return header, rows


def costs(reports: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of a table with a row a group: what its runs cost beside what they reach.

    "of dense" is the training time over that of the dense run with the same settings, seed, threads and processor,
    where that is among `reports`: mean over the seeds that both have.
    """
    header = [
        *("run", "seeds", "test accuracy", "training FLOPs", "training time", "of dense", "planning"),
        *("dense step", "step ratio", "saved on the clock", "saved in FLOPs", "realized / theoretical"),
    ]
    dense = {_twin_of(report): report for report in reports if report["config"]["schedule"] == "dense"}
    rows = []
    for name, members in group(reports).items():
        models = [report["models"]["sparse"] or report["models"]["dense"] for report in members]
        found = [saving(report) for report in members]
        steps = [report["time"]["dense"]["median_ms"] for report in members]
        baselines = [dense.get(_twin_of(report)) for report in members]
        shares = [
            training_seconds(report) / training_seconds(baseline)
            for report, baseline in zip(members, baselines, strict=True)
            if baseline is not None and baseline is not report
        ]
        rows.append(
            [
                name,
                str(len(members)),
                mean_and_spread([model and model["test_accuracy"] for model in models], 2),
                mean_and_spread([report["flops"]["training"] for report in members]),
                duration(statistics.mean(map(training_seconds, members))),
                mean_and_spread(shares),
                mean_and_spread([planning_share(report) for report in members]),
                "-" if None in steps else f"{statistics.mean(steps):.1f} ms",
                _mean([each and each.step_ratio for each in found], 3),
                mean_and_spread([each and each.realized for each in found]),
                mean_and_spread([each and each.theoretical for each in found]),
                _mean([each and each.share for each in found], 2),
            ]
        )
    return header, rows


def _twin_of(report: Mapping[str, Any]) -> str:
    """What a run and the dense run that it is compared with have in common."""
    config = ADDED | report["config"]
    own = ("schedule", "phases", "sparsity", "pattern", "scope", "kernels")
    setting = {key: value for key, value in config.items() if key not in own}
    return json.dumps([setting, report.get("machine", {}).get("cpu")], sort_keys=True)


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.mean(known):.{digits}f}" if known else "-"


def comparison_markdown(reports: Sequence[dict[str, Any]]) -> str:
    """Both tables: what the models are, and what the runs cost."""
    return f"{markdown_table(*comparison(reports), left=2)}\n\n{markdown_table(*costs(reports))}"
