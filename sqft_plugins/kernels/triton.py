"""The linear layer of a packed weight on a GPU, in Triton: the memory of layout.py, no promise of speed.

A program takes one block of 16 rows and some tokens. A stream of codes has no index: where a code lies is how many bits
of the masks come before it, so each step sums the bits of its chunks and carries the count on. It multiplies in float32
("ieee"), as reference.py does. Imported only where it is used: Triton comes with torch for GPUs, and with vLLM.

With `TRITON_INTERPRET=1` it runs on a CPU, which is how it is tested where there is no GPU.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# What stands below @triton.jit is Triton's language, which has no types for pointers and blocks.

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sqft_plugins.kernels.layout import Packed

TABLE = [
    triton.Config({"PAIRS": pairs}, num_warps=warps, num_stages=stages)
    for pairs, warps, stages in ((8, 2, 2), (16, 4, 2), (16, 4, 3), (32, 4, 2), (32, 8, 2))
]
"""What is tried, once for each shape, on the GPU that is there. PAIRS: pairs of chunks of one step, 8 inputs each."""
MOST_TOKENS = 64
"""Tokens of one program; more are split."""


@triton.jit
def _stream(
    accumulator,  # [16, TOKENS] float32
    masks,  # [PAIRS] int64
    chunk,  # [PAIRS]
    begin,  # where the stream goes on, in bytes of values
    values,
    scales,
    zero_points,
    x,
    token,  # [TOKENS]
    x_stride,
    tokens,
    in_features,
    group_size,
    SHIFT: tl.constexpr,
    ASYMMETRIC: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Adds the chunks of one stream to the accumulator; returns it, and where the stream goes on."""
    position = tl.arange(0, 64)
    kept = ((masks[:, None] >> position[None, :].to(tl.int64)) & 1).to(tl.int32)  # [PAIRS, 64]
    count = tl.sum(kept, axis=1)  # [PAIRS]
    before = tl.cumsum(count, axis=0) - count
    rank = tl.cumsum(kept, axis=1) - kept

    # the codes, which stand one after the other
    at = begin + (before[:, None] + rank).to(tl.int64)
    code = (tl.load(values + at, mask=kept != 0, other=0).to(tl.int32) >> SHIFT) & 15

    # their scales and zero points
    column = 4 * chunk[:, None] + (position % 4)[None, :]  # [PAIRS, 64]: the input of each weight
    grid = (column // group_size) * 16 + (position // 4)[None, :]
    real = column < in_features
    scale = tl.load(scales + grid, mask=real, other=0.0).to(tl.float32)
    zero = tl.full((PAIRS, 64), 8, tl.int32)
    if ASYMMETRIC:
        zero = tl.load(zero_points + grid, mask=real, other=0).to(tl.int32)

    # the weights [16, inputs], and the product
    weight = tl.where(kept != 0, (code - zero).to(tl.float32) * scale, 0.0)
    weight = tl.reshape(weight, (PAIRS, 16, 4)).permute(1, 0, 2)
    weight = tl.reshape(weight, (16, PAIRS * 4))  # [rows, inputs]
    inputs = tl.reshape(4 * chunk[:, None] + tl.arange(0, 4)[None, :], (PAIRS * 4,))
    here = (inputs[:, None] < in_features) & (token[None, :] < tokens)
    columns = tl.load(x + token[None, :] * x_stride + inputs[:, None], mask=here, other=0.0)  # [inputs, TOKENS]
    accumulator += tl.dot(weight, columns.to(tl.float32), input_precision="ieee")
    return accumulator, begin + tl.sum(count, axis=0)


@triton.jit
def _linear(
    x,
    masks,
    values,
    block_offsets,
    scales,
    zero_points,
    bias,
    y,
    tokens,
    x_stride,
    out,
    in_features,
    chunks,
    groups,
    group_size,
    ASYMMETRIC: tl.constexpr,
    BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    PAIRS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    even = tl.load(block_offsets + block)
    odd = even
    scales += block * groups * 16
    zero_points += block * groups * 16
    masks += block * chunks

    accumulator = tl.zeros((16, TOKENS), tl.float32)
    for first in range(0, chunks, 2 * PAIRS):
        chunk = first + 2 * tl.arange(0, PAIRS)
        real = chunk < chunks
        even_masks = tl.load(masks + chunk, mask=real, other=0)
        odd_masks = tl.load(masks + chunk + 1, mask=real, other=0)
        accumulator, even = _stream(
            accumulator, even_masks, chunk, even, values, scales, zero_points, x, token, x_stride, tokens,
            in_features, group_size, 0, ASYMMETRIC, PAIRS,
        )  # fmt: skip
        accumulator, odd = _stream(
            accumulator, odd_masks, chunk + 1, odd, values, scales, zero_points, x, token, x_stride, tokens,
            in_features, group_size, 4, ASYMMETRIC, PAIRS,
        )  # fmt: skip

    row = block * 16 + tl.arange(0, 16)
    if BIAS:
        accumulator += tl.load(bias + row, mask=row < out, other=0.0).to(tl.float32)[:, None]
    inside = (row[:, None] < out) & (token[None, :] < tokens)
    tl.store(y + token[None, :] * out + row[:, None], accumulator.to(y.dtype.element_ty), mask=inside)


_tuned = triton.autotune(TABLE, key=["out", "in_features", "group_size", "TOKENS"])(_linear)


def linear(
    x: Tensor, packed: Packed, scales: Tensor, zero_points: Tensor | None, bias: Tensor | None, out: int
) -> Tensor:
    """`x @ W.T + bias` → [..., out] in x's dtype; the arguments are those of reference.linear, on one device."""
    in_features = x.shape[-1]
    flat = x.reshape(-1, in_features)
    flat = flat if flat.stride(1) == 1 else flat.contiguous()
    tokens = flat.shape[0]
    y = torch.empty(tokens, out, dtype=x.dtype, device=x.device)

    width = min(max(16, triton.next_power_of_2(max(tokens, 1))), MOST_TOKENS)
    blocks, chunks = packed.masks.shape
    groups = scales.shape[1]
    constants: dict[str, Any] = {"ASYMMETRIC": zero_points is not None, "BIAS": bias is not None, "TOKENS": width}

    kernel: Any = _tuned
    if triton.knobs.runtime.interpret:  # nothing to measure
        kernel, constants["PAIRS"] = _linear, TABLE[0].kwargs["PAIRS"]

    if tokens:
        kernel[(blocks, triton.cdiv(tokens, width))](
            flat,
            packed.masks,
            packed.values,
            packed.block_offsets,
            scales,
            packed.values if zero_points is None else zero_points,
            y if bias is None else bias,
            y,
            tokens,
            flat.stride(0),
            out,
            in_features,
            chunks,
            groups,
            in_features // groups,
            **constants,
        )
    return y.reshape(*x.shape[:-1], out)
