"""The state of the random number generators as plain data."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

_REFUSALS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


def state() -> dict[str, Any]:
    """Of torch's CPU generator and Python's; of all CUDA devices' and numpy's where these are in use."""
    found: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state_all()
    if "numpy" in sys.modules:
        found["numpy"] = _plain_arrays(sys.modules["numpy"].random.get_state(legacy=False))
    return found


def _plain_arrays(value: Any) -> Any:
    """numpy's state with arrays as ``{"dtype": name, "values": list of int}``."""
    if isinstance(value, dict):
        return {key: _plain_arrays(item) for key, item in value.items()}
    return {"dtype": str(value.dtype), "values": value.tolist()} if hasattr(value, "dtype") else value


def _arrays(value: Any, numpy: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"dtype", "values"}:
            return numpy.array(value["values"], dtype=value["dtype"])
        return {key: _arrays(item, numpy) for key, item in value.items()}
    return value


def differences(state: Mapping[str, Any]) -> Iterator[str]:
    """Why the generators here can't take `state`."""
    try:
        torch.Generator().set_state(state["torch"])
        random.Random().setstate(state["python"])
    except _REFUSALS as error:
        yield f"its random number generators can't be restored ({error})"
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (there := len(state.get("cuda", ()))) > devices:
        yield f"it holds the generators of {there} CUDA devices, and there are {devices} here"
    if "numpy" in state:
        try:
            numpy = importlib.import_module("numpy")
        except ModuleNotFoundError:
            yield "it holds numpy's generator, and numpy is not installed here"
            return
        before = numpy.random.get_state(legacy=False)
        try:
            numpy.random.set_state(_arrays(state["numpy"], numpy))
        except _REFUSALS as error:
            yield f"numpy's generator can't be restored ({error})"
        finally:
            numpy.random.set_state(before)


def set_state(state: Mapping[str, Any]) -> None:
    """Restore what `state` holds; `differences` has found none."""
    torch.set_rng_state(state["torch"].clone())
    random.setstate(state["python"])
    for device, generator in enumerate(state.get("cuda", ())):
        torch.cuda.set_rng_state(generator, device)
    if "numpy" in state:
        numpy = importlib.import_module("numpy")
        numpy.random.set_state(_arrays(state["numpy"], numpy))
