"""Models that FSDP2 shards."""

from __future__ import annotations

import sys

from torch import nn

__all__ = ["reshard"]


def reshard(model: nn.Module) -> None:
    """Has every FSDP2 module hold its shards: a forward without a backward leaves whole parameters in their place."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nobody has imported it, nothing is sharded
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()
