"""Options whose value is a JSON object."""

from __future__ import annotations

from typing import Any

from .documents import parse
from .errors import UserError


def json_object(option: str, text: str) -> dict[str, Any]:
    """The object in `text`; UserError naming `option` if there is none."""
    try:
        found = parse(text)
    except ValueError as error:
        raise UserError(f"{option}: must be a JSON object, got {text[:200]!r} ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{option}: must be a JSON object, got {text[:200]!r}")
    return found
