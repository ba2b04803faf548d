"""The mathematics of SparsePEFT as pure functions: W' = W + s · (B @ A) ⊙ M (arXiv 2410.03750, equation 2).

W, M: [out, in]. A: [r, in]. B: [out, r]. x: [..., in]. s: the scaling alpha / r_max.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """y = x @ (W + s · (B @ A) ⊙ M).T with gradients for x, A and B; W is frozen.

    Nothing of size [out, in] is kept for the backward pass: the merged weight is made again there. Everything is
    computed in the dtype of x. M is `mask`, or W's nonzero pattern where `mask` is None and `sparse`.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scaling: float, sparse: bool, mask: Tensor | None
    ):
        ctx.save_for_backward(x, weight, A, B, mask)
        ctx.scaling, ctx.sparse = scaling, sparse
        return F.linear(x, _training_weight(x.dtype, weight, A, B, scaling, sparse, mask))

    @staticmethod
    def backward(ctx, grad_out: Tensor):  # type: ignore[override]
        x, weight, A, B, mask = ctx.saved_tensors
        grad_out = grad_out.to(x.dtype)
        grad_x = grad_A = grad_B = None
        if ctx.needs_input_grad[0]:
            grad_x = grad_out @ _training_weight(x.dtype, weight, A, B, ctx.scaling, ctx.sparse, mask)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            tokens_out = grad_out.flatten(0, -2)  # [tokens, out]
            grad_delta = tokens_out.t() @ x.flatten(0, -2)  # [out, in]
            if ctx.sparse:
                grad_delta.mul_(_mask_factor(weight, mask))
            grad_A = (B.to(x.dtype).t() @ grad_delta).to(A.dtype).mul_(ctx.scaling)
            grad_B = (grad_delta @ A.to(x.dtype).t()).to(B.dtype).mul_(ctx.scaling)
        return grad_x, None, grad_A, grad_B, None, None, None


def masked_linear(
    x: Tensor, weight: Tensor, A: Tensor, B: Tensor, scaling: float, sparse: bool, mask: Tensor | None = None
) -> Tensor:
    """`MaskedLinear`, under autocast in the autocast dtype as F.linear would be."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            return MaskedLinear.apply(x, weight, A, B, scaling, sparse, mask)
    return MaskedLinear.apply(x, weight, A, B, scaling, sparse, mask)


def _mask_factor(weight: Tensor, mask: Tensor | None) -> Tensor:
    # sign(W)² is the nonzero pattern as 0 and 1: multiplying by it takes a fifth of masked_fill_'s time on a CPU, where
    # boolean masks are not vectorized
    return weight.sign().square_() if mask is None else mask.to(weight.dtype)


def _training_weight(
    dtype: torch.dtype, weight: Tensor, A: Tensor, B: Tensor, scaling: float, sparse: bool, mask: Tensor | None
) -> Tensor:
    # in the dtype of the GEMM: what it rounds away here, the GEMM would round away too
    delta = B.to(dtype) @ A.to(dtype)
    if sparse:
        delta.mul_(_mask_factor(weight, mask))
    return delta.mul_(scaling).add_(weight)
