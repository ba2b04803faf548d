"""The interface of an operator: how one INT4 linear is computed.

A layer hands its shard over once, after loading (`prepare`), and keeps the state. A value plane (the codes of one rank
of a quantization-aware adapter over its base) is the same weight with other codes at kept places: mask, scales and zero
points are shared.

| name | where | after loading | a plane |
|---|---|---|---|
| `torch` | everywhere: the reference | the float weight in the activations' dtype | another float weight |
| `vllm` | what vLLM's own dense INT4 kernels take | 4 bits a weight and the scales | 4 bits a weight |
| `sparse` | CPU (sqft_plugins.kernels) | 1 bit a weight, 4 bits a kept weight, the scales | 4 bits a kept weight |
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sqft_plugins.errors import MismatchError
from sqft_plugins.grid import QuantizedWeight, steps
from sqft_plugins.mask import lost_zeros

MAX_DENSITY = 0.75
"""Above it vLLM's own dense kernel comes first: the mask costs more than the pruned codes save."""


class Operator(Protocol):
    """One way to compute `x @ W.T + bias` with W = scale * (codes - zero_point). name: as in SQFT_VLLM_OPERATOR."""

    name: str

    def why_not(self, problem: Problem) -> str | None:
        """Why this operator cannot take a shard; None where it can."""
        ...

    def prepare(self, weight: QuantizedWeight, mask: Tensor, dtype: torch.dtype) -> Any:
        """The state of one shard. weight: codes uint8 [out, in], scale float32 and zero_point uint8 [out, groups];
        mask: bool [out, in], True = kept; dtype: of the activations. Keeps no reference to `weight`."""
        ...

    def plane(self, state: Any, codes: Tensor) -> Any:
        """A plane of other codes uint8 [out, in] over the same mask. Raises MismatchError where a pruned place does not
        hold its zero point."""
        ...

    def linear(self, state: Any, x: Tensor, bias: Tensor | None, plane: Any = None) -> Tensor:
        """x: [tokens, in] → [tokens, out] in the dtype of x; `plane` in place of the codes of the state."""
        ...


class Problem(NamedTuple):
    """What decides which operator fits one shard. group_size: -1 is per channel."""

    shape: tuple[int, int]
    group_size: int
    symmetric: bool
    density: float
    dtype: torch.dtype
    device: str = "cpu"


def check_pruned(codes: Tensor, zero_point: Tensor, mask: Tensor, name: str = "the weight") -> None:
    """Raises MismatchError where a pruned place of codes [out, in] does not hold its zero point [out, groups]."""
    wrong = lost_zeros(steps(codes, zero_point), mask)
    if wrong:
        raise MismatchError(
            f"{name} is not zero at {wrong} places that its mask prunes: "
            f"mask and weights belong to two models; copy the whole folder again"
        )
