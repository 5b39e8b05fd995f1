"""Numbers inside a model's name."""

from __future__ import annotations


class BadName(ValueError):
    """A model's name does not fit its family's spelling; the message says what is asked for."""


def whole_numbers(rest: str, count: int, rule: str) -> list[int]:
    """The `count` positive whole numbers that `rest` (``28-10``) holds; `rule` says in words what they must be."""
    parts = rest.split("-")
    if len(parts) != count or not all(
        part.isascii() and part.isdigit() and 0 < len(part.lstrip("0")) < 19 for part in parts
    ):
        raise BadName(rule)
    return [int(part) for part in parts]
