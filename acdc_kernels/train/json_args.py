"""Options whose value is a JSON object."""

from __future__ import annotations

import json
from typing import Any

from .errors import UserError


def json_object(option: str, text: str) -> dict[str, Any]:
    """The object in `text`; UserError naming `option` if there is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"{option}: must be a JSON object, got {text!r} ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{option}: must be a JSON object, got {text!r}")
    return found
