"""The base weight that a merge saves, so that an unmerge puts back the very tensors.

Another layer may have the same weight: tied heads, `layer_replication`, a module in two places. A merge into it would
change that layer, too. So the merged weight is a tensor of the layer's own, and what stood there is saved as it was.
Only a sharded weight, which FSDP holds on to, is written over, and a copy is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class SavedBase:
    """The base of a merged layer.

    layer: the base layer as it stood in the adapted one, with whatever wraps it.
    weight, bias: its parameters, in its own layout.
    in_place: whether they are copies, because the merge writes over the parameters themselves.
    """

    layer: nn.Module
    weight: Tensor
    bias: Tensor | None
    in_place: bool

    @classmethod
    def of(cls, layer: nn.Module, base: nn.Linear, in_place: bool) -> SavedBase:
        """layer: the base layer; base: the linear layer inside."""
        weight, bias = base.weight, base.bias
        if in_place:
            return cls(layer, weight.detach().clone(), None if bias is None else bias.detach().clone(), True)
        return cls(layer, weight, bias, False)

    def to_merge_into(self, base: nn.Linear, alone: bool) -> nn.Module:
        """The layer with copies of weight and bias in it; another module where the base is not there `alone`."""
        if self.in_place:
            return self.layer
        if not alone:
            base = copy(base)  # hooks and attributes are shared
            base._parameters = dict(base._parameters)
        base.weight = _own(self.weight)
        if self.bias is not None:
            base.bias = _own(self.bias)
        return self.layer if alone else base

    def put_back(self, base: nn.Linear) -> nn.Module:
        """The layer as it was; `base` is the merged one."""
        if self.in_place:
            base.weight.data.copy_(self.weight)  # not `.data = weight`, which does nothing to a sharded parameter
            if self.bias is not None:
                base.bias.data.copy_(self.bias)
        elif base in self.layer.modules():
            base.weight, base.bias = self.weight, self.bias  # type: ignore[assignment]
        return self.layer

    def apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """`nn.Module._apply`: another device or dtype."""
        for tensor in (self.weight, self.bias):
            if tensor is not None:
                tensor.data = fn(tensor.data)


def is_fsdp_managed(module: nn.Module) -> bool:
    """Whether the module is inside FSDP: its weight is a view of a flat parameter, gathered for each forward."""
    return bool(getattr(module, "_is_fsdp_managed_module", False))


def _own(parameter: Tensor) -> nn.Parameter:
    """A copy with the marks that transformers and others set on a parameter."""
    own = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    own.__dict__.update(parameter.__dict__)
    return own
