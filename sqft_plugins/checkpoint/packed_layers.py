"""Linear layers and embeddings over weights that stay packed, for training an adapter beside them on a CPU.

A layer's weight is made into floats in its forward pass and once more in its backward pass, whole, and dropped again.
Its products are those of a layer that holds these floats, so that an adapter learns the same to the bit. Only a weight
of more than `WHOLE` numbers, such as a large output head, goes by blocks of rows: there the gradient of the inputs is
summed in another order.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sqft_plugins.checkpoint.attached import mark_codes
from sqft_plugins.grid.packed import PackedWeight, floats_of

WHOLE = 2**26
"""Weights, 256 MiB in float32: more than a layer of 14336 x 4096."""


class PackedLinear(nn.Linear):
    """nn.Linear without a parameter `weight`: asked for, it is made anew, a tensor [out, in].

    packed: what it is made of. dtype: of its floats. Writing to `weight` puts a float weight in the place of the packed
    one, until `release`; writing into it changes nothing.
    """

    plain_linear = True
    packed: PackedWeight
    dtype: torch.dtype

    def __init__(self, packed: PackedWeight, dtype: torch.dtype, bias: nn.Parameter | None = None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = packed.shape
        self.register_parameter("bias", bias)
        self.packed, self.dtype = packed, dtype
        self._stand_in: Tensor | None = None
        mark_codes(self)

    @property
    def weight(self) -> Tensor:
        return floats_of(self.packed, self.dtype) if self._stand_in is None else self._stand_in

    @weight.setter
    def weight(self, weight: Tensor) -> None:
        self._stand_in = weight.detach().to(self.dtype)

    def release(self) -> None:
        """From now on the weight is the packed one again."""
        self._stand_in = None

    def forward(self, input: Tensor) -> Tensor:
        """input [..., in] → [..., out], under autocast in the autocast dtype as F.linear would be."""
        if self._stand_in is not None:
            return F.linear(input, self._stand_in, self.bias)
        y: Tensor
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            with torch.autocast("cpu", enabled=False):
                bias = None if self.bias is None else self.bias.to(dtype)
                y = _Product.apply(input.to(dtype), bias, self.packed, dtype)
        else:
            y = _Product.apply(input, self.bias, self.packed, self.dtype)
        return y


def is_packed(layer: nn.Module) -> TypeGuard[PackedLinear]:
    """Whether a linear layer holds a packed weight."""
    return isinstance(layer, PackedLinear)


class _Product(torch.autograd.Function):
    """y = x Wᵀ + b, with W packed, frozen, and made in `dtype`, which is that of x and b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, packed: PackedWeight, dtype: torch.dtype) -> Tensor:
        ctx.packed, ctx.dtype = packed, dtype
        blocks = _blocks(packed)
        if len(blocks) == 1:
            return F.linear(x, floats_of(packed, dtype), bias)
        parts = (F.linear(x, floats_of(packed, dtype, rows), None if bias is None else bias[rows]) for rows in blocks)
        return torch.cat(list(parts), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            for rows in _blocks(ctx.packed):
                part = torch.matmul(grad[..., rows], floats_of(ctx.packed, ctx.dtype, rows))
                grad_x = part if grad_x is None else grad_x.add_(part)
        if ctx.needs_input_grad[1]:
            grad_bias = grad.flatten(0, -2).sum(0)
        return grad_x, grad_bias, None, None


def _blocks(packed: PackedWeight) -> list[slice]:
    """The rows that are floats at once."""
    rows, columns = packed.shape
    step = rows if rows * columns <= WHOLE else max(WHOLE // columns, 1)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


class PackedEmbedding(nn.Module):
    """The embedding `layer` over a packed weight [tokens, width], of which it makes the rows of the tokens that it is
    asked for; whatever the class of `layer` does besides is done (Gemma's scales them)."""

    layer: nn.Embedding
    packed: PackedWeight
    dtype: torch.dtype

    def __init__(self, layer: nn.Embedding, packed: PackedWeight, dtype: torch.dtype):
        super().__init__()
        layer.padding_idx = None  # it says which row has no gradient, and none has one here
        layer.register_parameter("weight", None)
        vars(self)["layer"] = layer  # no module of the model: it has no weight most of the time
        self.packed, self.dtype = packed, dtype
        self.num_embeddings, self.embedding_dim = packed.shape

    @property
    def weight(self) -> Tensor:
        """[tokens, width], made anew."""
        return floats_of(self.packed, self.dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [...] → [..., width]"""
        different, places = tokens.unique(return_inverse=True)
        self.layer._parameters["weight"] = nn.Parameter(self.packed.rows(different).dequantize(self.dtype), False)
        try:
            result: Tensor = self.layer(places)
        finally:
            self.layer._parameters["weight"] = None
        return result
