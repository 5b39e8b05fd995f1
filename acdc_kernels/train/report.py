"""The report of a run: what it found, as one JSON document, and that document as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .documents import check, parse
from .errors import UserError
from .loop import Trainer, evaluate
from .machine import machine, versions
from .memory import memory_facts
from .models import build_model
from .run_folder import Kind, RunFolder
from .saving import Saving, planning_share, saving
from .tables import duration, percent, size, text_table

FORMAT = 1
_MODEL_SHAPE = {
    "epoch": int,
    **dict.fromkeys(("val_accuracy", "test_accuracy", "sparsity", "inference_flops"), float),
}
_ROW_SHAPE = {
    "epoch": int,
    "phase": str,
    **dict.fromkeys(("train_accuracy", "val_accuracy", "sparsity", "flops", "seconds"), float),
}
_TIME_SHAPE = {"count": int, "seconds": float, "median_ms": (float,)}
# what tables and curves rely on
REPORT_SHAPE = {
    "config": {"preset": str, "schedule": str, "epochs": int, "seed": int, "sparsity": float},
    "models": {"sparse": (_MODEL_SHAPE,), "dense": (_MODEL_SHAPE,)},
    "flops": {"training": float, "compressed_step": (float,)},
    "time": dict.fromkeys(("dense", "compressed", "flip", "evaluation"), _TIME_SHAPE),
    "history": [_ROW_SHAPE],
}
MEMORY = tuple(f"{name}_bytes" for name in ("model", "optimizer", "mask", "twin_on_disk", "peak"))
# what some reports have and older ones lack
_OPTIONAL = {
    "memory": dict.fromkeys(MEMORY, int),
    "plan": [
        {
            **dict.fromkeys(("layer", "product", "kernel", "reason"), str),
            "times": dict,
            "samples": (int,),
            "shape": [int],
            "sparsity": (float,),
        }
    ],
}
PRODUCTS = ("forward", "input gradient", "weight gradient")
LAYERS_SHOWN = 12
DENSE_PRODUCTS = "FLOPs leave out products with zero weights. Every product of {} was dense, with zeros in the weights."


def build_report(trainer: Trainer, folder: RunFolder, command: str) -> dict[str, Any]:
    """The report of a finished run: reads the pair from `folder` and scores it on the test samples.

    ``flops`` are fractions of what dense training or inference costs, by the paper's rule (see `flops.FlopRule`).
    """
    history = trainer.history
    memory = memory_facts(trainer.model, trainer.optimizer, trainer.sparsifier)  # scoring is no part of training
    compressed = [row["flops"] for row in history if row["phase"] == "compressed"]
    models = {kind: _score(trainer, folder, kind) for kind in ("sparse", "dense")}
    report = {
        "format": FORMAT,
        "config": trainer.config.to_dict(),
        "models": models,
        "flops": {
            "rule": trainer.flops.rule,
            "dense_forward_per_sample": trainer.flops.dense_forward,
            "training": sum(row["flops"] for row in history) / len(history),
            "compressed_step": sum(compressed) / len(compressed) if compressed else None,
            "inference": (models["sparse"] or models["dense"])["inference_flops"],
        },
        "time": trainer.clock.summary(),
        "plan": [row.to_dict() for row in trainer.sparsifier.plan()],
        "memory": memory,
        "uncovered": trainer.sparsifier.uncovered(),
        "data": {
            "source": trainer.data.source,
            "unit": trainer.data.unit,
            "samples": {part: len(getattr(trainer.data, part)) for part in ("train", "validation", "test")},
        },
        "machine": machine(),
        "versions": versions(),
        "command": command,
        "history": history,
    }
    if found := saving(report):
        report["saving"] = asdict(found) | {"realized": found.realized, "realized_of_theoretical": found.share}
    return report


def _score(trainer: Trainer, folder: RunFolder, kind: Kind) -> dict[str, Any] | None:
    config, best = trainer.config, trainer.best(kind)
    if best is None:
        return None
    state, facts = folder.load_model(kind)
    if facts["epoch"] != best["epoch"]:
        raise UserError(
            f"{folder.path}: {kind}.safetensors is of epoch {facts['epoch']}, must be of epoch {best['epoch']}"
        )
    model = build_model(config.model, trainer.data, config.seed, config.model_args)
    model.load_state_dict(state)
    nonzeros = trainer.flops.nonzeros(model)
    return {
        "epoch": best["epoch"],
        "val_accuracy": evaluate(model, trainer.data.validation, config.precision),
        "test_accuracy": evaluate(model, trainer.data.test, config.precision),
        "weights": trainer.flops.weights,
        "nonzeros": trainer.flops.kept(nonzeros),
        "sparsity": trainer.flops.sparsity(nonzeros),
        "inference_flops": trainer.flops.forward(nonzeros) / trainer.flops.dense_forward,
        "layers": [
            {
                "name": c.name,
                "weights": c.weights,
                "nonzeros": nonzeros[c.name],
                "sparsity": 1 - nonzeros[c.name] / c.weights,
            }
            for c in trainer.flops.layers
        ],
    }


def read_report(path: Path) -> dict[str, Any]:
    """The report in a run folder, or in a JSON file copied from one. Raises UserError if there is none."""
    file = path / "report.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        state = "an unfinished run; continue it with --resume" if RunFolder(path).holds_run else "no run"
        raise UserError(f"{path}: holds {state} (there is no report.json)")
    try:
        report = parse(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    try:
        check(report, {"format": int}, "report")
        if report["format"] != FORMAT:
            raise ValueError(f"it is of format {report['format']}, must be of {FORMAT}")
        check(report, REPORT_SHAPE, "report")
        for key, shape in _OPTIONAL.items():
            if key in report:
                check(report[key], shape, f"report.{key}")
        epochs, rows = report["config"]["epochs"], len(report["history"])
        if not 0 < rows == epochs:
            raise ValueError(f"report.history: must have a row for each of {epochs} epochs, got {rows}")
    except ValueError as error:
        raise UserError(f"{file}: not the report of a run ({error})") from error
    return report


def summary(report: dict[str, Any]) -> str:
    """One run as text: the pair, the FLOPs, the time, the saving of both, the plan."""
    config, time, flops, models = report["config"], report["time"], report["flops"], report["models"]
    total = sum(kind["seconds"] for kind in time.values())
    names = {"dense": "dense twin" if models["sparse"] else "dense model", "sparse": "sparse model"}
    rows = [
        [
            names[kind],
            percent(model["test_accuracy"], 2),
            percent(model["val_accuracy"], 2),
            percent(model["sparsity"]),
            percent(model["inference_flops"]),
            str(model["epoch"]),
        ]
        for kind in ("dense", "sparse")
        if (model := models[kind])
    ]

    def phases(kind: str) -> str:
        facts = time[kind]
        return f"{duration(facts['seconds'])} in {kind} phases ({facts['median_ms']:.1f} ms a step)"

    spent = [phases(kind) for kind in ("dense", "compressed") if time[kind]["median_ms"] is not None]
    spent += [f"{duration(time['flip']['seconds'])} in flips"] if time["flip"]["count"] else []
    if (share := planning_share(report)) is not None:
        spent += [f"{duration(time['planning']['seconds'])} planning ({percent(share)} of the compressed steps)"]
    spent += [f"{duration(time['evaluation']['seconds'])} in evaluation"]
    compressed = "" if flops["compressed_step"] is None else f"; a compressed step {percent(flops['compressed_step'])}"
    lines = [
        f"{config['preset']} {config['schedule']}, seed {config['seed']}: "
        f"{config['epochs']} epochs in {duration(total)}",
        "",
        text_table(["model", "test", "validation", "sparsity", "inference FLOPs", "epoch"], rows),
        "",
        f"training FLOPs  {percent(flops['training'])} of dense training{compressed}",
        f"training time   {', '.join(spent)}",
    ]
    if found := saving(report):
        lines.append(f"saving          {_saving(found)}")
    if "memory" in report:
        lines.append(f"memory          {_memory(report['memory'])}")
    if plan := report.get("plan"):
        lines += ["", _plan(plan)]
    if models["sparse"]:
        if all(row["kernel"] == "dense" for row in plan or ()):  # of earlier phases nobody knows
            lines += ["", DENSE_PRODUCTS.format("the last compressed phase" if plan else "this run")]
        if models["dense"] and models["dense"]["sparsity"] >= 0.001:
            lines += ["", "The dense twin's zeros were pruned, or zero from the start, and have got no gradient since."]
    return "\n".join(lines)


def _saving(found: Saving) -> str:
    share = "-" if found.share is None else f"{found.share:.2f}"
    return (
        f"a compressed step takes {found.step_ratio:.3f} of a dense one: {percent(found.realized)} saved on the clock, "
        f"{percent(found.theoretical)} in FLOPs; realized / theoretical {share}"
    )


def _plan(rows: Sequence[Mapping[str, Any]]) -> str:
    """The plan of the last compressed phase, a row a layer, and why products are dense."""
    layers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        layers.setdefault(row["layer"], {})[row["product"]] = row
    table = []
    for name, products in list(layers.items())[:LAYERS_SHOWN]:
        first = next(iter(products.values()))
        shape = "x".join(map(str, first["shape"]))
        cells = [_kernel(products[product]) if product in products else "-" for product in PRODUCTS]
        table.append([name, shape, percent(first["sparsity"]), *cells])
    lines = [text_table(["layer", "shape", "sparsity", *PRODUCTS], table)]
    if len(layers) > LAYERS_SHOWN:
        lines.append(f"and {len(layers) - LAYERS_SHOWN} more layers: see plan in report.json")
    whys: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["kernel"] == "dense":  # reasons that differ in their figures alone are one
            whys.setdefault(re.sub(r"\d+(\.\d+)?", "", row["reason"]), []).append(row)
    sparse = sum(row["kernel"] != "dense" for row in rows)
    lines.append(f"{sparse} of {len(rows)} products are sparse" + (", dense are" if whys else ""))
    for alike in whys.values():
        others = f" and {len(alike) - 1} more" if len(alike) > 1 else ""
        figures = "e.g. " if len({row["reason"] for row in alike}) > 1 else ""  # of the first alone
        lines.append(f"  {alike[0]['layer']} {alike[0]['product']}{others}: {figures}{alike[0]['reason']}")
    return "\n".join(lines)


def _kernel(row: Mapping[str, Any]) -> str:
    """A cell of the plan: the kernel, its time, and dense's beside it."""
    mine, dense = row["times"].get(row["kernel"]), row["times"].get("dense")
    text = row["kernel"] if mine is None else f"{row['kernel']} {mine:.3g} ms"
    return text if row["kernel"] == "dense" or dense is None else f"{text} (dense {dense:.3g})"


def _memory(facts: dict[str, int]) -> str:
    parts = ("model", "optimizer", "mask", "topology")
    held = ", ".join(f"{name} {size(facts[f'{name}_bytes'])}" for name in parts if facts.get(f"{name}_bytes"))
    twin = facts["twin_on_disk_bytes"]
    return f"peak {size(facts['peak_bytes'])}; {held}" + (f"; dense twin on disk {size(twin)}" if twin else "")
