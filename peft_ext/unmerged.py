"""The weights of the base under an adapter, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from peft_ext.layer import Linear


class UnmergedWeights(Mapping[str, Tensor]):
    """Module name → weight [out, in] of the base, whatever is merged now; asked of its layer each time."""

    def __init__(self, layers: Mapping[str, Linear]):
        self._layers = layers

    def __getitem__(self, name: str) -> Tensor:
        return self._layers[name].unmerged_weight()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)
