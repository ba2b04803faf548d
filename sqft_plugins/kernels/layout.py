"""The packed form of a sparse INT4 weight in memory, which every back end reads. csrc/kernel.h states the same.

Rows are padded to 16 and inputs to 8. Block b is the rows 16 b to 16 b + 15; chunk c of a block is its inputs 4 c to
4 c + 3: 64 weights, the one of row r and input i at the position 4 (r % 16) + i % 4. That is the order of a 512-bit
register for VNNI: 16 lanes, one a row, of 4 inputs.

    masks          int64   [blocks, chunks]      bit p of a chunk = the weight at position p is kept; padding is 0
    values         uint8   [bytes]               see below, and 64 zero bytes at the end
    block_offsets  int64   [blocks + 1]          the byte of `values` where each block begins
    scales         float16 [blocks, groups, 16]  of each row of a block; rows of padding have 0
    zero_points    uint8   [blocks, groups, 16]  absent where all are 8 (symmetric)

A block of `values` is two streams of the codes of its kept weights, in order: those of the even chunks in the low
halves of the bytes, those of the odd chunks in the high halves. It is as long as the longer of the two; the rest of the
shorter one is 0. So two chunks, 128 weights, are read with one load and no shift between them. At 50 % a weight takes
1 + 2 bits, and its share of the scales.

Another stream of the same masks, offsets and scales is a *value plane*: the same base with other codes, as a
quantization-aware adapter merged at another rank has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sqft_plugins.errors import GridError, KernelError
from sqft_plugins.grid import MAX_CODE, SYMMETRIC_ZERO_POINT, zero_codes
from sqft_plugins.kernels.library import library
from sqft_plugins.mask import pack_mask, unpack_mask

ROWS = 16
"""Rows of a block."""
INPUTS = 4
"""Inputs of a chunk."""
CHUNK = ROWS * INPUTS
END = 64
"""Zero bytes behind the last block of `values`, so that a vector load stays inside."""
SLAB = 64
"""Blocks that are packed or unpacked at a time: temporaries stay a few MB whatever the size of the weight."""


class Packed(NamedTuple):
    """masks, values and block_offsets, as at the top of this file."""

    masks: Tensor
    values: Tensor
    block_offsets: Tensor


def blocks_of(out: int) -> int:
    """Blocks of `out` rows."""
    return -(-out // ROWS)


def chunks_of(in_features: int) -> int:
    """Chunks of a block; always even."""
    return 2 * -(-in_features // (2 * INPUTS))


def pack(codes: Tensor, mask: Tensor) -> Packed:
    """codes: uint8 [out, in], 0..15; mask: bool [out, in], True = kept → the packed form, on the CPU.

    The codes of pruned weights are dropped: the caller knows that they are the zero points. Raises GridError for a code
    above 15, KernelError for another dtype or shape.
    """
    _check_codes(codes, mask.shape)
    if mask.dtype != torch.bool or mask.dim() != 2 or 0 in mask.shape:
        raise KernelError(f"mask is {_what(mask)}: give bool [out, in], True = kept")
    compiled = library().handle
    if compiled is None:
        masks = torch.cat([_bits(_to_chunks(slab.cpu())) for slab in mask.split(ROWS * SLAB)])  # [blocks, chunks]
        block_offsets = offsets_of(masks)
    else:
        mask = mask.cpu().contiguous()
        masks = torch.empty(blocks_of(mask.shape[0]), chunks_of(mask.shape[1]), dtype=torch.int64)
        block_offsets = torch.empty(masks.shape[0] + 1, dtype=torch.int64)
        compiled.sqft_pack_masks(mask.data_ptr(), *mask.shape, masks.data_ptr(), block_offsets.data_ptr())
    return Packed(masks, pack_values(codes, masks, block_offsets), block_offsets)


def offsets_of(masks: Tensor) -> Tensor:
    """int64 [blocks + 1]: the byte where the codes of each block begin, which the masks decide."""
    offsets = torch.zeros(masks.shape[0] + 1, dtype=torch.int64)
    torch.cumsum(_stream_lengths(masks).amax(1), 0, out=offsets[1:])
    return offsets


def pack_values(codes: Tensor, masks: Tensor, block_offsets: Tensor) -> Tensor:
    """The value plane of `codes` [out, in] under these masks → uint8 [bytes]. Raises GridError, KernelError."""
    _check_codes(codes)
    if blocks_of(codes.shape[0]) != masks.shape[0] or chunks_of(codes.shape[1]) != masks.shape[1]:
        raise KernelError(f"codes {tuple(codes.shape)} are not of the weight with masks {tuple(masks.shape)}")

    values = torch.zeros(int(block_offsets[-1]) + END, dtype=torch.uint8)
    compiled = library().handle
    if compiled is not None:
        codes, masks, offsets = codes.cpu().contiguous(), masks.cpu(), block_offsets.cpu()
        pointers = (masks.data_ptr(), offsets.data_ptr(), values.data_ptr())
        compiled.sqft_pack_values(codes.data_ptr(), *codes.shape, *pointers)
        return values

    for slab in _slabs(masks, block_offsets):
        ordered = _to_chunks(codes[slab.rows].cpu())  # [blocks, chunks, 64]
        stored = values[slab.first : slab.last]
        for stream, shift in ((0, 0), (1, 4)):
            kept = ordered[:, stream::2].masked_select(slab.kept[:, stream::2])
            stored[slab.occupied[stream]] |= kept << shift
    return values


def unpack(packed: Packed, zero_points: Tensor | None, out: int, in_features: int) -> tuple[Tensor, Tensor]:
    """The inverse of `pack` → codes uint8 [out, in], the pruned ones their zero points, and mask bool [out, in].

    zero_points: uint8 [blocks, groups, 16], None = 8 everywhere.
    """
    codes = torch.empty(out, in_features, dtype=torch.uint8)
    mask = torch.empty(out, in_features, dtype=torch.bool)
    compiled = library().handle
    if compiled is not None:
        parts = [part.cpu() for part in packed]
        zero = None if zero_points is None else zero_points.cpu()
        compiled.sqft_unpack(
            *(part.data_ptr() for part in parts),
            None if zero is None else zero.data_ptr(),
            1 if zero is None else zero.shape[1],
            out,
            in_features,
            codes.data_ptr(),
            mask.data_ptr(),
        )
        return codes, mask

    for rows, some_codes, some_mask in unpack_slabs(packed, zero_points, out, in_features):
        codes[rows], mask[rows] = some_codes, some_mask
    return codes, mask


def unpack_slabs(
    packed: Packed, zero_points: Tensor | None, out: int, in_features: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """`unpack`, some rows after the other: the rows, their codes and their mask."""
    for slab in _slabs(packed.masks, packed.block_offsets):
        rows = slice(slab.rows.start, min(slab.rows.stop, out))
        count = rows.stop - rows.start
        stored = packed.values[slab.first : slab.last].cpu()
        ordered = torch.zeros(slab.kept.shape, dtype=torch.uint8)  # [blocks, chunks, 64]
        for stream, shift in ((0, 0), (1, 4)):
            kept = (stored.masked_select(slab.occupied[stream]) >> shift) & MAX_CODE
            ordered[:, stream::2].masked_scatter_(slab.kept[:, stream::2], kept)
        zero = torch.full((count, 1), SYMMETRIC_ZERO_POINT, dtype=torch.uint8)
        if zero_points is not None:
            zero = zero_codes(from_groups(zero_points[slab.blocks].cpu(), count), in_features)
        mask = _to_rows(slab.kept, count, in_features)
        yield rows, torch.where(mask, _to_rows(ordered, count, in_features), zero), mask


def to_groups(values: Tensor) -> Tensor:
    """[out, groups] → [blocks, groups, 16], rows of padding 0: how scales and zero points stand beside the masks."""
    padded = F.pad(values, (0, 0, 0, -values.shape[0] % ROWS))
    return padded.unflatten(0, (-1, ROWS)).transpose(1, 2).contiguous()


def from_groups(values: Tensor, out: int) -> Tensor:
    """The inverse of `to_groups` → [out, groups]."""
    return values.transpose(1, 2).flatten(0, 1)[:out]


def pack_scales(scale: Tensor) -> Tensor:
    """float [out, groups] → float16 [blocks, groups, 16]. Raises GridError for a scale that float16 does not hold:
    ours have 8 significant bits from 2^-17 to 65504, AutoGPTQ's are float16 already."""
    narrow = scale.to(torch.float16)
    if not bool(torch.isfinite(narrow).all()) or not torch.equal(narrow.to(scale.dtype), scale):
        raise GridError("scale is not finite or not exact in float16: quantize the weight with `sqft quantize`")
    return to_groups(narrow)


def expect(
    name: str, part: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], fits: str = ": pack the weight again"
) -> None:
    """Raises KernelError for a part that is there and not contiguous, of this dtype and shape. fits: what it is to fit,
    or the remedy."""
    if part is not None and (part.dtype != dtype or part.shape != shape or not part.is_contiguous()):
        raise KernelError(f"{name} is {_what(part)}, expected contiguous {dtype} {shape}{fits}")


def check(packed: Packed, out: int, in_features: int) -> None:
    """Raises KernelError where masks, values and offsets are not those of one weight of `out` rows: the kernels read
    where they say. Reads the masks once, and the streams' ends."""
    masks, values, block_offsets = packed
    blocks, chunks = blocks_of(out), chunks_of(in_features)

    expect("masks", masks, torch.int64, (blocks, chunks))
    expect("block_offsets", block_offsets, torch.int64, (blocks + 1,))
    expect("values", values, torch.uint8, (values.numel(),))
    if not torch.equal(block_offsets.cpu(), offsets_of(masks.cpu())):
        raise KernelError("block_offsets are not those of the masks: pack the weight again")
    wanted = int(block_offsets[-1]) + END
    if values.numel() != wanted:
        raise KernelError(f"values has {values.numel()} bytes, the masks ask for {wanted}: pack the weight again")

    # the padding keeps nothing
    last_row, last_input = out % ROWS, in_features % (2 * INPUTS)
    if last_row and bool((masks[-1] >> (INPUTS * last_row)).any()):  # arithmetic: all that is left of the high bits
        raise KernelError(f"masks keep weights of rows above out={out}: pack the weight again")
    if last_input and _kept_behind(masks[:, -2:].cpu(), last_input):
        raise KernelError(f"masks keep weights of inputs above in={in_features}: pack the weight again")


def check_groups(scales: Tensor, zero_points: Tensor | None, out: int, in_features: int) -> None:
    """Raises KernelError for scales or zero points of another dtype or shape, GridError for one off the grid."""
    blocks, groups = blocks_of(out), scales.shape[1] if scales.dim() == 3 else 0
    if not groups or in_features % groups:
        raise KernelError(
            f"scales is {_what(scales)}: its groups do not divide in={in_features}, pack the weight again"
        )
    expect("scales", scales, torch.float16, (blocks, groups, ROWS))
    expect("zero_points", zero_points, torch.uint8, (blocks, groups, ROWS))
    if not bool(torch.isfinite(scales).all()):
        raise GridError("scales hold NaN or infinity: find the broken tensor with `sqft inspect`")
    if zero_points is not None and int(zero_points.max()) > MAX_CODE:
        raise GridError(f"zero_point={int(zero_points.max())} is not an INT4 code: use 0..15")


def kept(masks: Tensor) -> int:
    """How many weights the masks keep."""
    return int(_stream_lengths(masks.cpu()).sum())


class _Slab(NamedTuple):
    """Up to SLAB blocks. kept: bool [blocks, chunks, 64]. first, last: its bytes of `values`. occupied: for either
    stream bool [last - first], the bytes that hold a code of it."""

    blocks: slice
    rows: slice
    kept: Tensor
    first: int
    last: int
    occupied: tuple[Tensor, Tensor]


def _slabs(masks: Tensor, block_offsets: Tensor) -> Iterator[_Slab]:
    masks, block_offsets = masks.cpu(), block_offsets.cpu()
    for start in range(0, masks.shape[0], SLAB):
        part = masks[start : start + SLAB]
        stop = start + part.shape[0]
        kept = unpack_mask(part.reshape(-1, 1).view(torch.uint8), CHUNK).view(*part.shape, CHUNK)
        offsets = block_offsets[start : stop + 1] - block_offsets[start]
        even, odd = (_occupied(offsets, lengths) for lengths in _stream_lengths(part).unbind(1))
        first, last = int(block_offsets[start]), int(block_offsets[stop])
        yield _Slab(slice(start, stop), slice(ROWS * start, ROWS * stop), kept, first, last, (even, odd))


def _occupied(offsets: Tensor, lengths: Tensor) -> Tensor:
    """bool [offsets[-1]]: the first `lengths[b]` bytes of each block b."""
    steps = torch.zeros(int(offsets[-1]) + 1, dtype=torch.int8)  # +1 where a stream begins, -1 where it ends
    ones = torch.ones(len(lengths), dtype=torch.int8)
    steps.index_add_(0, offsets[:-1], ones).index_add_(0, offsets[:-1] + lengths, -ones)
    return steps.cumsum(0, dtype=torch.int8)[:-1].bool()


def _stream_lengths(masks: Tensor) -> Tensor:
    """int64 [blocks, 2]: the codes of the even and of the odd chunks of each block."""
    counts = torch.empty(masks.shape[0], 2, dtype=torch.int64)
    for start in range(0, masks.shape[0], SLAB):
        # the bits of each byte, summed in pairs, in fours, in eights
        ones = masks[start : start + SLAB].contiguous().view(torch.uint8).clone()
        ones -= (ones >> 1) & 0x55
        ones = (ones & 0x33) + ((ones >> 2) & 0x33)
        ones = (ones + (ones >> 4)) & 0x0F
        counts[start : start + SLAB] = ones.unflatten(1, (-1, 2, 8)).sum((1, 3))
    return counts


def _to_chunks(values: Tensor) -> Tensor:
    """[rows, in] → [blocks, chunks, 64], padded with 0."""
    padded = F.pad(values, (0, -values.shape[1] % (2 * INPUTS), 0, -values.shape[0] % ROWS))
    return padded.unflatten(0, (-1, ROWS)).unflatten(2, (-1, INPUTS)).transpose(1, 2).flatten(2)


def _to_rows(chunks: Tensor, rows: int, in_features: int) -> Tensor:
    """The inverse of `_to_chunks` → [rows, in]."""
    return chunks.unflatten(2, (ROWS, INPUTS)).transpose(1, 2).flatten(0, 1).flatten(1)[:rows, :in_features]


def _bits(kept: Tensor) -> Tensor:
    """bool [blocks, chunks, 64] → int64 [blocks, chunks]."""
    return pack_mask(kept.flatten(0, 1)).view(torch.int64).view(kept.shape[:2])


def _kept_behind(masks: Tensor, last_input: int) -> bool:
    """Whether the last two chunks of a block, masks int64 [blocks, 2], keep an input of padding."""
    kept = unpack_mask(masks.reshape(-1, 1).view(torch.uint8), CHUNK).view(-1, 2, ROWS, INPUTS)
    return bool(kept.transpose(1, 2).flatten(2)[..., last_input:].any())


def _check_codes(codes: Tensor, shape: torch.Size | None = None) -> None:
    if codes.dtype != torch.uint8 or codes.dim() != 2 or (shape is not None and codes.shape != shape):
        raise KernelError(f"codes is {_what(codes)}: give uint8 [out, in], of the shape of the mask")
    if codes.numel() and int(codes.max()) > MAX_CODE:
        raise GridError(f"code={int(codes.max())} is not an INT4 code: use 0..15")


def _what(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
