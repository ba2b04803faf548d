"""The linear layer over a packed weight, as a module of a transformers model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.errors import KernelError
from sqft_plugins.kernels.weight import SparseInt4Weight


class NoWeightError(KernelError, AttributeError):
    """Something asked a packed layer for its float weight. Also an AttributeError, so that `hasattr` is False."""


class SparseInt4Linear(nn.Module):
    """A linear layer over a packed weight, for inference: it has no gradient and no `weight`.

    packed: the weight. bias: [out] or None, in the dtype of the activations. like: an empty tensor of the dtype and
    device that a float weight would have here; it follows the model's `.to(...)`.
    """

    like: Tensor

    def __init__(self, packed: SparseInt4Weight, bias: Tensor | None = None, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.packed = packed
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.in_features, self.out_features = packed.in_features, packed.out_features
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=packed.masks.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [..., in] → [..., out]
        if x.requires_grad and torch.is_grad_enabled():
            return _NoGradient.apply(x, self)
        return self.packed.linear(x, self.bias)

    def extra_repr(self) -> str:
        return f"{self.packed}, bias={self.bias is not None}"

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise NoWeightError(
                "an accelerated layer has no float weight, and a masked, quantization-aware or DoRA adapter and every "
                "merge need it: call undo() of what accelerate() returned, or load the model without accelerating it"
            )
        return super().__getattr__(name)

    def _save_to_state_dict(self, *arguments: Any) -> None:
        raise KernelError("an accelerated model cannot be saved: call undo() of what accelerate() returned first")

    def _apply(self, fn: Any, recurse: bool = True) -> SparseInt4Linear:
        super()._apply(fn, recurse)
        if self.like.device != self.packed.masks.device:  # another dtype is no matter of the packed weight
            self.packed = self.packed.to(self.like.device)
        return self


class _NoGradient(torch.autograd.Function):
    """Refuses a gradient when it is taken: outside of `torch.no_grad()` the embeddings make every x ask for one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: SparseInt4Linear) -> Tensor:
        return layer.packed.linear(x, layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise KernelError(
            "an accelerated model has no gradients: call undo() of what accelerate() returned, then train"
        )
