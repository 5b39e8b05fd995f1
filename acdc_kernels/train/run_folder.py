"""A run's folder: what lies where, written whole or not at all, and guarded against holding two runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._version import __version__
from ..checkpoint import load_checkpoint, save_checkpoint
from .documents import check, parse
from .errors import UserError
from .presets import RunConfig
from .replacing import replacing, temporary_of

FORMAT = 3
CONFIG_SHAPE = {name: get_origin(kind) or kind for name, kind in get_type_hints(RunConfig).items()}
Kind = Literal["dense", "sparse"]


class RunFolder:
    """The files of one run: config.json, history.csv, report.json, curves.png, the pair's models and checkpoint/."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.curves = path / "curves.png"
        self.checkpoint = path / "checkpoint" / "last.pt"

    @property
    def finished(self) -> bool:
        return (self.path / "report.json").is_file()

    @property
    def holds_run(self) -> bool:
        return (self.path / "config.json").is_file()

    def config(self) -> RunConfig:
        """The configuration of the run that lies here. Raises UserError if it cannot be read."""
        path = self.path / "config.json"
        try:
            content = parse(path.read_text())
            check(content, {"format": int}, "config")
            if (found := content.pop("format")) != FORMAT:
                raise ValueError(f"it is of format {found}, this version of acdc-kernels ({__version__}) has {FORMAT}")
            check(content, CONFIG_SHAPE, "config")
            return RunConfig(**content)
        except (OSError, ValueError, TypeError) as error:  # TypeError: keys that no configuration has
            raise UserError(f"{path}: not the configuration of a run ({error})") from error

    def check(self, config: RunConfig, resume: bool) -> None:
        """Raises UserError unless `path` is new or empty, or holds the run of `config` and `resume` is set."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path}: must be a folder, is a file")
        if self.holds_run:
            theirs, ours = self.config().to_dict(), config.to_dict()
            differing = [f"{key} {theirs[key]!r} there, {ours[key]!r} now" for key in ours if theirs[key] != ours[key]]
            if differing:
                raise UserError(f"{self.path}: holds another run ({'; '.join(differing)}); choose another --out")
            if not resume:
                state = "finished" if self.finished else "unfinished"
                raise UserError(
                    f"{self.path}: holds this run, {state}; continue it with --resume or choose another --out"
                )
        elif self.path.is_dir() and not all(map(_left_by_create, self.path.iterdir())):
            raise UserError(f"{self.path}: holds files but no run (there is no config.json); choose another --out")

    def create(self, config: RunConfig) -> None:
        """Make the folder ready for the run of `config`; whatever stops this leaves what `check` accepts."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json("config.json", {"format": FORMAT, **config.to_dict()})
        self.checkpoint.parent.mkdir(exist_ok=True)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        with replacing(self.path / "history.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def save_checkpoint(self, **parts: Any) -> None:
        save_checkpoint(self.checkpoint, **parts)

    def load_checkpoint(self, **parts: Any) -> dict[str, Any] | None:
        """Restore `parts` from the state last saved; the plain data in it, None if there is none yet.

        Raises UserError, and changes nothing, if it cannot be read or does not fit.
        """
        if not self.checkpoint.is_file():
            return None
        try:
            return load_checkpoint(self.checkpoint, **parts)
        except ValueError as error:
            raise UserError(str(error).removeprefix("load_checkpoint: ")) from error

    def save_model(self, kind: Kind, state: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write ``KIND.safetensors`` with `facts` as metadata: one JSON entry, as the order of several varies."""
        with replacing(self.path / f"{kind}.safetensors") as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask says; save_file's would be for the owner only
            save_file(_separate(state), temporary, {"run": json.dumps(facts)})
            temporary.chmod(mode)

    def load_model(self, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(state dict, facts) of ``KIND.safetensors``."""
        with safe_open(self.path / f"{kind}.safetensors", framework="pt") as file:
            names = file.keys()  # what safetensors opens is no mapping: it can't be iterated
            return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["run"])


def _left_by_create(path: Path) -> bool:
    """Whether `path` is what a killed or failed `RunFolder.create` may have left."""
    empty = path.name == "checkpoint" and path.is_dir() and not any(path.iterdir())
    return empty or path.name == temporary_of(Path("config.json")).name


def _separate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` as safetensors takes it: contiguous, and what is there under two names written under both."""
    seen: set[int] = set()
    tensors = {}
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    return tensors
