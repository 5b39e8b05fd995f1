"""JSON from outside: parsed, and checked against the shape that its reader relies on."""

from __future__ import annotations

import json
import math
from typing import Any

NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


def parse(text: str) -> Any:
    """The value in `text`. Raises ValueError if it is no JSON, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check(value: Any, shape: Any, where: str) -> None:
    """Raises ValueError, naming the place below `where`, unless `value` has `shape`.

    | shape                       | fits                                                                       |
    |-----------------------------|----------------------------------------------------------------------------|
    | str, int, float, bool, dict | a value of this type; float: any finite number; whole numbers: below 2**63 |
    | {key: shape, ...}           | an object that has these keys at least                                     |
    | [shape]                     | a list of any length                                                       |
    | (shape,)                    | null as well                                                               |
    """
    if isinstance(shape, tuple):
        if value is not None:
            check(value, shape[0], where)
    elif isinstance(shape, list):
        _must(isinstance(value, list), where, "a list", value)
        for i, item in enumerate(value):
            check(item, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict):
        _must(isinstance(value, dict), where, "an object", value)
        if missing := [key for key in shape if key not in value]:
            raise ValueError(f"{where}: missing {', '.join(missing)}")
        for key, inner in shape.items():
            check(value[key], inner, f"{where}.{key}")
    else:
        fits = type(value) is shape or (shape is float and type(value) is int)
        # NaN and endless digits are JSON to Python, and break what is computed with them
        sound = not isinstance(value, (int, float)) or abs(value) < (2**63 if isinstance(value, int) else math.inf)
        _must(fits and sound, where, NAMES[shape], value)


def _must(ok: bool, where: str, what: str, got: Any) -> None:
    if not ok:
        raise ValueError(f"{where}: must be {what}, got {str(got)[:60]!r}")
