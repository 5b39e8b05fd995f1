"""What autograd functions share: which gradients are asked for, and that they have none themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["asked_for", "below_autograd", "once"]

below_autograd = torch._C._AutoDispatchBelowADInplaceOrView  # a context: ops called in it record nothing


def asked_for(ctx: Any) -> tuple[bool, bool, bool]:
    """Whether this backward is to give the gradients of input and weight, and whether the bias requires one.

    Of a function whose first arguments are these three.
    """
    need_input, need_weight, need_bias = ctx.needs_input_grad[:3]
    if need_input and need_weight:  # with one alone little can be saved
        (input_node, _), (weight_node, _) = ctx.next_functions[:2]
        need_input, need_weight = _is_asked(input_node), _is_asked(weight_node)
    return need_input, need_weight, need_bias


def _is_asked(node: torch.autograd.graph.Node) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # what it says of a leaf that torch.autograd.grad is asked for
        return True


def once(grads: tuple[Tensor | None, ...], why: str) -> tuple[Tensor | None, ...]:
    """The same gradients, which raise RuntimeError, saying ``why``, when somebody differentiates them."""
    there = [grad.detach().requires_grad_() for grad in grads if grad is not None]
    made = torch._C._functions.DelayedError(why.encode(), len(there))(*there) if there else ()
    refusing = iter((made,) if isinstance(made, Tensor) else made)  # of one tensor it gives no tuple
    return tuple(None if grad is None else next(refusing) for grad in grads)
