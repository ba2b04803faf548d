"""The mathematics of SparsePEFT as pure functions: W' = W + s · (B @ A) ⊙ M (arXiv 2410.03750, equation 2).

W, M: [out, in]. A: [r, in]. B: [out, r]. x: [..., in]. s: the scaling alpha / r_max.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peft_ext.requantize import block_rows, fake_quantized_blocks
from sqft_plugins.mask import numeric_mask


def masked_delta(A: Tensor, B: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """s · (B @ A) ⊙ M → [out, in] in the dtype of A and B; M None is all ones."""
    delta = (B @ A).mul_(scaling)
    return delta if mask is None else delta.masked_fill_(~mask, 0)


def merged_weight(weight: Tensor, A: Tensor, B: Tensor, scaling: float, mask: Tensor | None) -> Tensor:
    """W + s · (B @ A) ⊙ M → [out, in] in W's dtype, computed in float32.

    Merging and evaluating unmerged both call this, so that they agree to the bit.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    delta = masked_delta(A.to(exact), B.to(exact), scaling, mask)
    return delta.add_(weight).to(weight.dtype)


class MaskedLinear(torch.autograd.Function):
    """y = x @ W'.T, W' = W + s · (B @ A) ⊙ M, with gradients for x, A and B; W is frozen.

    Everything is computed in the dtype of x. M is `mask`, or W's nonzero pattern where `mask` is None and `sparse`.
    With `scale` and `zero_point` W' is put on that INT4 grid (`requantize`), in float32 whatever x is, and only then
    cast; the gradient passes straight through the rounding and the clamp.
    Nothing of size [out, in] is kept for the backward pass, nor ever made on a CPU: the merged weight is made block of
    rows by block of rows (`requantize.BLOCK`), and made again in the backward pass.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        A: Tensor,
        B: Tensor,
        scaling: float,
        sparse: bool,
        mask: Tensor | None,
        scale: Tensor | None = None,
        zero_point: Tensor | None = None,
        on_grid: bool = False,
    ):
        ctx.save_for_backward(x, weight, A, B, mask, scale, zero_point)
        ctx.scaling, ctx.sparse, ctx.on_grid = scaling, sparse, on_grid
        tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
        y = x.new_empty(len(tokens), len(weight))  # [tokens, out]
        blocks = _blocks(x.dtype, weight, A, B, scaling, sparse, mask, scale, zero_point, on_grid)
        for rows, merged, _ in blocks:
            torch.mm(tokens, merged.t(), out=y[:, rows])
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out: Tensor):  # type: ignore[override]
        x, weight, A, B, mask, scale, zero_point = ctx.saved_tensors
        tokens = x.reshape(-1, x.shape[-1])  # [tokens, in]
        grad_y = grad_out.to(x.dtype).reshape(-1, len(weight))  # [tokens, out]
        grad_x = torch.zeros_like(tokens) if ctx.needs_input_grad[0] else None
        adapter = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        grad_A, grad_B = torch.zeros_like(A, dtype=x.dtype), torch.empty_like(B, dtype=x.dtype)
        A_t, B_x = A.to(x.dtype).t(), B.to(x.dtype)
        grid = mask, scale, zero_point, ctx.on_grid
        for rows, merged, kept in _blocks(x.dtype, weight, A, B, ctx.scaling, ctx.sparse, *grid):
            block = grad_y[:, rows]  # [tokens, rows]
            if grad_x is not None:
                grad_x.addmm_(block, merged)
            if adapter:
                grad_delta = torch.mm(block.t(), tokens, out=merged)  # [rows, in]; the merged block is done with
                if kept is not None:
                    grad_delta.mul_(kept)
                grad_A.addmm_(B_x[rows].t(), grad_delta)
                torch.mm(grad_delta, A_t, out=grad_B[rows])
        if grad_x is not None:
            grad_x = grad_x.view(x.shape)
        if not adapter:
            return (grad_x, *(None,) * 9)
        grad_A, grad_B = (gradient.mul_(ctx.scaling).to(A.dtype) for gradient in (grad_A, grad_B))
        return (grad_x, None, grad_A, grad_B, *(None,) * 6)


def masked_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    sparse: bool,
    mask: Tensor | None = None,
    scale: Tensor | None = None,
    zero_point: Tensor | None = None,
    on_grid: bool = False,
) -> Tensor:
    """`MaskedLinear`, under autocast in the autocast dtype as F.linear would be."""
    arguments = (weight, A, B, scaling, sparse, mask, scale, zero_point, on_grid)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return MaskedLinear.apply(x, *arguments)
    return MaskedLinear.apply(x, *arguments)


Block = tuple[slice, Tensor, Tensor | None]
"""(rows, the merged weight of those rows, M of those rows as 0 and 1 or None)."""


def _blocks(
    dtype: torch.dtype,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    sparse: bool,
    mask: Tensor | None,
    scale: Tensor | None,
    zero_point: Tensor | None,
    on_grid: bool,
) -> Iterator[Block]:
    if scale is None or zero_point is None:
        return _merged_blocks(dtype, weight, A, B * scaling, sparse, mask)
    return fake_quantized_blocks(dtype, weight, A, B, scaling, mask, scale, zero_point, on_grid)


def _merged_blocks(
    dtype: torch.dtype, weight: Tensor, A: Tensor, scaled_B: Tensor, sparse: bool, mask: Tensor | None
) -> Iterator[Block]:
    """(rows, W + (s · B) @ A ⊙ M of those rows, M as 0 and 1) in `dtype`; the tensors are reused by the next block.

    M is a number to multiply by (`numeric_mask`), which is faster than masked_fill_.
    """
    A, scaled_B = A.to(dtype), scaled_B.to(dtype)
    merged_space, kept_space = (
        torch.empty(block_rows(weight)[0].stop, weight.shape[1], dtype=dtype, device=weight.device) for _ in range(2)
    )
    for rows in block_rows(weight):
        count = rows.stop - rows.start
        merged, kept = merged_space[:count], kept_space[:count]
        block = weight[rows].to(dtype)
        torch.mm(scaled_B[rows], A, out=merged)
        if not sparse:
            yield rows, merged.add_(block), None
            continue
        if mask is None:
            numeric_mask(block, out=kept)
        else:
            kept.copy_(mask[rows])
        yield rows, torch.addcmul(block, merged, kept, out=merged), kept
