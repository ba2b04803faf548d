"""SparsePEFT as pure functions: the merged weight, and the linear layer that is trained (arXiv 2410.03750, equation 2).

W, M: [out, in]. A: [r, in]. B: [out, r]. x: [..., in]. s: the scaling alpha / r_max. The formula is in
sqft_plugins/formula.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sqft_plugins.formula import Block, masked_sum, merged_blocks
from sqft_plugins.layer_grid import LayerGrid
from sqft_plugins.requantize import fake_quantized_blocks


def masked_delta(A: Tensor, B: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """s · (B @ A) ⊙ M → [out, in] in the dtype of A and B; mask: bool [out, in], None is all ones."""
    return masked_sum(None, A, B, scaling, mask, A.dtype)


def merged_weight(weight: Tensor, A: Tensor, B: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """W + s · (B @ A) ⊙ M → [out, in] in W's dtype, computed in float32.

    Merging and evaluating unmerged both call this, so that they agree to the bit.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    return masked_sum(weight, A.to(exact), B.to(exact), scaling, mask, exact).to(weight.dtype)


class Gradients(NamedTuple):
    """What `MaskedLinear.backward` returns: one value for each argument of `forward`, None where there is none.

    Returned as a plain tuple: torch.compile loses the gradients in a named one without a word.
    """

    x: Tensor | None = None
    weight: None = None
    A: Tensor | None = None
    B: Tensor | None = None
    scaling: None = None
    sparse: None = None
    grid: None = None


class MaskedLinear(torch.autograd.Function):
    """y = x W'ᵀ with W' = W + s · (B @ A) ⊙ M and, under a grid, W' = dequantize(quantize(W + s · (B @ A) ⊙ M)).

    With g the gradient of y, and W frozen:

        G_W = gᵀ x ⊙ M      [out, in]
        ∂A  = s · Bᵀ G_W    [r, in]
        ∂B  = s · G_W Aᵀ    [out, r]
        ∂x  = g W'          [..., in]

    Straight-through rule under a grid: rounding and clamp count as the identity, so ∂A and ∂B are these, too; ∂x takes
    the rounded W', with which y was computed.

    The products with x and g have the dtype of x. Nothing of size [out, in] is kept for the backward pass, nor ever
    made on a CPU: W' is made block of rows by block of rows, and made again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        A: Tensor,
        B: Tensor,
        scaling: float,
        sparse: bool,
        grid: LayerGrid | None,
    ) -> Tensor:
        """As `masked_linear`."""
        ctx.save_for_backward(x, weight, A, B)
        ctx.scaling, ctx.sparse, ctx.grid = scaling, sparse, grid

        tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
        y = x.new_empty(*x.shape[:-1], len(weight))  # no view, since a model may add to it in place (Llama 4)
        outputs = y.view(-1, len(weight))  # [tokens, out]
        for rows, merged, _ in _blocks(x.dtype, weight, A, B, scaling, sparse, grid):
            torch.mm(tokens, merged.t(), out=outputs[:, rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """grad_out: g [..., out]."""
        x, weight, A, B = ctx.saved_tensors
        tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
        g = grad_out.to(x.dtype).reshape(-1, len(weight))  # [tokens, out]
        grad_x = torch.zeros_like(tokens) if ctx.needs_input_grad[0] else None
        trains_adapter = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        grad_A, grad_B = torch.zeros_like(A, dtype=x.dtype), torch.empty_like(B, dtype=x.dtype)
        A_t, B_x = A.to(x.dtype).t(), B.to(x.dtype)

        for rows, merged, mask in _blocks(x.dtype, weight, A, B, ctx.scaling, ctx.sparse, ctx.grid):
            g_rows = g[:, rows]  # [tokens, rows]
            if grad_x is not None:
                grad_x.addmm_(g_rows, merged)
            if trains_adapter:
                # G_W takes the memory of W', which is done with
                grad_W = torch.mm(g_rows.t(), tokens, out=merged)  # [rows, in]
                if mask is not None:
                    grad_W.mul_(mask)
                grad_A.addmm_(B_x[rows].t(), grad_W)
                torch.mm(grad_W, A_t, out=grad_B[rows])

        grad_x = None if grad_x is None else grad_x.view(x.shape)
        if not trains_adapter:
            return tuple(Gradients(x=grad_x))
        grad_A, grad_B = (gradient.mul_(ctx.scaling).to(A.dtype) for gradient in (grad_A, grad_B))
        return tuple(Gradients(x=grad_x, A=grad_A, B=grad_B))


def masked_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    sparse: bool = True,
    grid: LayerGrid | None = None,
) -> Tensor:
    """`MaskedLinear`, under autocast in the autocast dtype as F.linear would be → y [..., out].

    x: [..., in].
    weight: W [out, in], frozen.
    A: [r, in]. B: [out, r].
    scaling: s.
    sparse: whether M is the mask of `grid`, or W's nonzero pattern; False for all ones.
    grid: the INT4 grid that W' is put on, in float32 whatever x is, and only then cast; None for a float W'.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return MaskedLinear.apply(x, weight, A, B, scaling, sparse, grid)
    return MaskedLinear.apply(x, weight, A, B, scaling, sparse, grid)


def _blocks(
    dtype: torch.dtype, weight: Tensor, A: Tensor, B: Tensor, scaling: float, sparse: bool, grid: LayerGrid | None
) -> Iterator[Block]:
    """The merged weight in `dtype`, block by block: on its grid where there is one."""
    if grid is not None:
        return fake_quantized_blocks(weight, A, B, scaling, dtype, grid)
    return merged_blocks(weight, A.to(dtype), (B * scaling).to(dtype), sparse, dtype)
