"""Runs that are killed and resumed, one forked process each, by a driver that never computes anything itself.

``python killed_runs.py FOLDER SEED TRACED TIMED`` prints a JSON line a kill: where it struck, and whether the resumed
run ended with the bits of the uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch._dynamo  # which every optimizer imports: once here, not in each run
from torch import nn

import acdc_kernels as acdc
from acdc_kernels import checkpoint

# 30 updates, phases of 3: D C D C D C D D C C; a save every 2 falls on and off the flips
SCHEDULE = acdc.schedules.acdc(10, 1, 1, 1, 2, 2, steps_per_unit=3)
SAVE_EVERY = 2
PLACES = ("loop", "save", "write")  # a write: the part of a save during which a temporary file is there
PHASES = ("dense", "compressed")
TRACED = (__file__, *map(str, Path(checkpoint.__file__).parent.glob("*.py")))


def train(path: Path, at_step: Callable[[int], None] = lambda step: None) -> str:
    """A plain training loop that takes its data from all three generators; the digest of everything at its end."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(64, 20),
        nn.Linear(20, 5),
    )
    optimizer = acdc.MaskedSGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    # which kernels are faster is for each process to find out, so here that is settled
    sparsifier = acdc.Sparsifier(model, optimizer, SCHEDULE, sparsity=0.8, kernels="sparse")
    lr_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, SCHEDULE.total_steps)
    parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier, "lr_schedule": lr_schedule}
    losses: list[float] = []
    if path.exists():
        losses = checkpoint.load_checkpoint(path, **parts)["losses"]
    for step in range(len(losses), SCHEDULE.total_steps):
        at_step(step)
        x = torch.randn(8, 1, 6, 6) * random.uniform(0.5, 2)
        y = torch.from_numpy(np.random.randint(0, 5, 8))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        sparsifier.step()
        lr_schedule.step()
        losses.append(loss.item())
        if (step + 1) % SAVE_EVERY == 0:
            checkpoint.save_checkpoint(path, **parts, losses=losses)
    return digest(parts, losses)


def digest(parts: dict[str, Any], losses: list[float]) -> str:
    total = hashlib.sha256(struct.pack(f"{len(losses)}d", *losses))

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            total.update(value.detach().contiguous().numpy().tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                total.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list):
            for item in value:
                add(item)
        else:
            total.update(repr(value).encode())

    add({name: part.state_dict() for name, part in parts.items()})
    add(dict(parts["sparsifier"].dense_twin().named_parameters()))
    add([torch.rand(3), random.random(), np.random.rand()])
    return total.hexdigest()


class Tracer:
    """Counts the lines executed in the loop and in the package's checkpoint code, and may kill at one of them."""

    def __init__(self, path: Path, kill_at: int | None = None) -> None:
        self.path = path
        self.kill_at = kill_at
        self.lines: list[tuple[int, str]] = []  # of each line: the step, and, unless one is to kill, its place
        self.step = 0

    def at_step(self, step: int) -> None:
        self.step = step

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in TRACED:
            return None
        if event == "line":
            if len(self.lines) == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.lines.append((self.step, self._place(frame) if self.kill_at is None else ""))
        return self

    def _place(self, frame: FrameType) -> str:
        if frame.f_code.co_filename == __file__:
            return "loop"
        return "write" if set(os.listdir(self.path.parent)) - {self.path.name} else "save"


def fork(work: Callable[[], Any]) -> tuple[int, int]:
    """(process, where its answer can be read)."""
    read, write = os.pipe()
    if process := os.fork():
        os.close(write)
        return process, read
    try:
        os.close(read)
        os.write(write, b".")  # from here on it may be killed
        answer = json.dumps(work()).encode()
        with os.fdopen(write, "wb") as pipe:
            pipe.write(answer)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def result(process: int, read: int) -> Any:
    """What the process answered; None if it was killed."""
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return None
    if status != 0:
        raise RuntimeError(f"a run failed with status {status}")
    return json.loads(answer.lstrip(b"."))


def in_process(work: Callable[[], Any]) -> Any:
    return result(*fork(work))


def traced(path: Path, kill_at: int | None = None) -> dict[str, Any]:
    tracer = Tracer(path, kill_at)
    sys.settrace(tracer)
    try:
        ended = train(path, tracer.at_step)
    finally:
        sys.settrace(None)
    return {"digest": ended, "lines": tracer.lines}


def kills(folder: Path, seed: int, by_line: int, by_time: int) -> Iterator[dict[str, Any]]:
    chance = random.Random(seed)
    path = folder / "last.pt"
    places = {place: {} for place in product(PHASES, PLACES)}  # (phase, place) -> step -> the lines there
    for at, (step, place) in enumerate(in_process(lambda: traced(fresh(folder)))["lines"]):
        places[SCHEDULE.at(step).kind, place].setdefault(step, []).append(at)
    if missing := [place for place, found in places.items() if not found]:
        raise RuntimeError(f"an uninterrupted run must pass every phase and place, but not {missing}")
    started = time.perf_counter()
    whole = in_process(lambda: train(fresh(folder)))
    duration = time.perf_counter() - started

    def resumed(facts: dict[str, Any]) -> dict[str, Any]:
        left = [file.name for file in folder.iterdir() if file != path] if folder.exists() else []  # killed that early
        same = in_process(lambda: train(path)) == whole
        return {**facts, "left": left, "same": same, "clean": [file.name for file in folder.iterdir()] == [path.name]}

    for (phase, place), _ in zip(cycle(places), range(by_line), strict=False):
        step = chance.choice(list(places[phase, place]))
        at = chance.choice(places[phase, place][step])
        if in_process(lambda at=at: traced(fresh(folder), at)) is not None:
            raise RuntimeError(f"line {at} was never reached")
        yield resumed({"step": step, "phase": phase, "place": place, "at": f"line {at}"})
    while by_time:
        after = chance.uniform(0, duration)
        process, read = fork(lambda: train(fresh(folder)))
        os.read(read, 1)
        time.sleep(after)
        os.kill(process, signal.SIGKILL)
        if result(process, read) is None:
            by_time -= 1
            yield resumed({"at": f"{after:.4f} s"})


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder / "last.pt"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kill in kills(Path(sys.argv[1]), *map(int, sys.argv[2:])):
        print(json.dumps(kill), flush=True)
