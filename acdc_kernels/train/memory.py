"""What a run takes of the machine's memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..formats.topology import Topology
from ..nn.product import Product
from ..sparsifier import Sparsifier


def peak_bytes() -> int:
    """The most memory that this process has had resident so far, as the system counts it.

    Pages of mapped files count while they are resident, though the system can drop them.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):  # getrusage would not go below the parent's size when it started this process
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_facts(model: nn.Module, optimizer: Optimizer, sparsifier: Sparsifier) -> dict[str, int]:
    """The process's peak so far, and the bytes of what lives through a run or a phase of it.

    Masks, topologies and the twin on disk are there in a compressed phase only.
    """
    state = sparsifier.state_dict()
    return {
        "peak_bytes": peak_bytes(),
        "model_bytes": _bytes((*model.parameters(), *model.buffers())),
        "optimizer_bytes": _bytes(_tensors([optimizer.state[p] for p in optimizer.state])),
        "mask_bytes": _bytes(sparsifier.masks.values()),
        "topology_bytes": sum(topology.nbytes for topology in _topologies(model)),
        "twin_on_disk_bytes": _bytes(state["dense_twin"].values()),
    }


def _topologies(model: nn.Module) -> list[Topology]:
    products = [getattr(module, "product", None) for module in model.modules()]
    found = [product.topology for product in products if isinstance(product, Product)]
    return [topology for topology in found if topology is not None]


def _tensors(states: Iterable[dict[str, Any]]) -> list[Tensor]:
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
