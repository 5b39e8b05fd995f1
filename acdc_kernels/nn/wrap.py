"""Wrapping: gives a layer a place for a sparse product without changing what it is to its user.

A wrapped layer's class is a subclass of the one it had, made once per class: ``isinstance`` holds; parameters, hooks,
``state_dict`` and training mode are untouched. The class stays for as long as the layer is wrapped, since others
(FSDP2, for one) derive from it; what changes between phases is the attribute ``product``. ``torch.jit.script`` needs
the layer's own class: ``Sparsifier.remove()`` first.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn

__all__ = ["is_wrapped", "unwrap", "wrap"]


class _Wrapped(nn.Module):
    """What every wrapped class adds to the layer's own.

    product: computes the layer's output as ``product(layer, *inputs)``. None: the layer's own forward does.
    """

    product: Callable[..., Any] | None = None
    _own: type[nn.Module]  # the layer's class before it was wrapped

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.product is None:
            return super().forward(*args, **kwargs)
        return self.product(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        # A class made at run time can't be found by name: pickle the layer's own class, and wrap again on the way back.
        function, args, *rest = super().__reduce_ex__(max(int(protocol), 2))
        if function is copyreg.__newobj__ and args[0] is _wrapped_class(self._own):
            function, args = _new, (self._own, *args[1:])
        return (function, args, *rest)


@cache
def _wrapped_class(own: type[nn.Module]) -> type[nn.Module]:
    name = f"Sparse{own.__name__}"
    # The own class's module, because torch.fx and others tell torch's layers from a user's by it.
    return type(own)(name, (_Wrapped, own), {"__module__": own.__module__, "__doc__": own.__doc__, "_own": own})


def _new(own: type[nn.Module], *args: Any) -> nn.Module:
    cls = _wrapped_class(own)
    return cls.__new__(cls, *args)


def is_wrapped(layer: nn.Module) -> bool:
    """Whether ``wrap`` has been called on this layer, or on the one that it is a copy of."""
    return isinstance(layer, _Wrapped)


def wrap(layer: nn.Module) -> None:
    """Wraps one layer in place. Raises ValueError if it is wrapped already."""
    if is_wrapped(layer):
        raise ValueError(f"wrap: layer must not be wrapped already, got {layer}")
    layer.__class__ = _wrapped_class(type(layer))


def unwrap(model: nn.Module) -> nn.Module:
    """Gives ``model`` and every layer in it their own classes back, in place, and returns it."""
    for layer in model.modules():
        if is_wrapped(layer):
            layer.__dict__.pop("product", None)
            # A class that somebody derived from the wrapped one stays: it computes the dense product.
            if type(layer) is _wrapped_class(layer._own):
                layer.__class__ = layer._own
    return model
