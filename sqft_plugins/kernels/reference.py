"""The linear layer of a packed weight in plain torch: where no kernel was built, and what the kernels are held to.

It unpacks some rows at a time and multiplies in float32, so it is exact to float32's rounding and takes little memory,
and it is slow: every call unpacks the whole weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sqft_plugins.grid import dequantize, symmetric_zero_point
from sqft_plugins.kernels.layout import Packed, from_groups, unpack_slabs


def linear(
    x: Tensor, packed: Packed, scales: Tensor, zero_points: Tensor | None, bias: Tensor | None, out: int
) -> Tensor:
    """`x @ W.T + bias` → [..., out] in x's dtype, computed in float32 (float64 for a float64 x).

    x: [..., in]. scales: float16 [blocks, groups, 16]. zero_points: uint8 of that shape, None = 8. bias: [out].
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    wide = x.reshape(-1, x.shape[-1]).to(exact)  # [tokens, in]
    y = torch.empty(wide.shape[0], out, dtype=exact, device=x.device)
    scale = from_groups(scales, out).float()  # [out, groups]
    zero = symmetric_zero_point(scale) if zero_points is None else from_groups(zero_points, out)
    for rows, codes, _ in unpack_slabs(packed, zero_points, out, x.shape[-1]):
        weight = dequantize(codes.to(x.device), scale[rows], zero[rows], exact)  # [rows, in]
        y[:, rows] = F.linear(wide, weight)
    if bias is not None:
        y += bias.to(exact)
    return y.to(x.dtype).reshape(*x.shape[:-1], out)
