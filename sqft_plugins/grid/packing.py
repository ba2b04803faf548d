"""Codes in int32 words, as compressed-tensors' `pack-quantized` has them; and numbers of a few bits in bytes.

A row is one stream of bits, each code with its lowest bit first, cut into words: 32 codes of 3 bits take 3 words. So
compressed-tensors packs since 0.20, and vLLM reads. Before, no code went over the end of a word: 3, 5 and 6 bits were
padded, 10, 6 and 5 codes a word. `padded_words` tells such rows by their length. For 2, 4 and 8 bits both are the same.

Not by that library: which of the two it writes depends on its version, and it brings transformers, for which reading a
folder would wait seconds.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sqft_plugins.errors import GridError
from sqft_plugins.grid.kinds import BITS

WORD = 32


def packed_words(count: int, bits: int = BITS) -> int:
    """The int32 words that hold `count` codes."""
    return -(-count * bits // 32)


def padded_words(count: int, bits: int = BITS) -> int:
    """The same as compressed-tensors before 0.20 packed: whole codes in each word."""
    return -(-count // (WORD // bits))


def pack(codes: Tensor, bits: int = BITS) -> Tensor:
    """uint8 codes [out, in] → int32 [out, ceil(in · bits / 32)], on the CPU. Raises GridError for a code that has more
    bits."""
    largest = int(codes.max()) if codes.numel() else 0
    if largest >= 2**bits:
        raise GridError(f"code={largest} is not an INT{bits} code: use 0..{2**bits - 1}")

    rows, columns = codes.shape
    each = np.unpackbits(codes.cpu().numpy()[..., None], axis=2, count=bits, bitorder="little")  # [out, in, bits]
    stream = np.zeros((rows, packed_words(columns, bits) * WORD), np.uint8)
    stream[:, : columns * bits] = each.reshape(rows, -1)
    return torch.from_numpy(np.packbits(stream, axis=1, bitorder="little").view("<i4").astype(np.int32, copy=False))


def unpack(packed: Tensor, count: int, bits: int = BITS) -> Tensor:
    """The inverse of `pack`: int32 [out, words] → uint8 codes [out, count], on the same device; also of rows that are
    padded, which is told by their length."""
    padded = packed.shape[1] != packed_words(count, bits) and packed.shape[1] == padded_words(count, bits)
    if padded:  # whole codes in each word
        shifts = torch.arange(0, WORD - bits + 1, bits, dtype=torch.int32, device=packed.device)
        codes = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)  # [out, words, codes a word]
        return codes.to(torch.uint8).flatten(1)[:, :count].contiguous()

    # the shortest run of whole codes in whole bytes, all runs at once: training over packed weights does this often
    run = 8 // math.gcd(8, bits)
    stream = packed.contiguous().view(torch.uint8)
    runs = -(-count // run)
    size = runs * run * bits // 8  # the words may end within the last run
    stream = stream[:, :size] if stream.shape[1] >= size else F.pad(stream, (0, size - stream.shape[1]))
    held = stream.unflatten(1, (runs, -1))  # [out, runs, bytes]
    codes = torch.empty(len(packed), runs, run, dtype=torch.uint8, device=packed.device)
    for place in range(run):
        byte, shift = divmod(place * bits, 8)
        code = held[:, :, byte] >> shift
        if shift + bits > 8:
            code |= held[:, :, byte + 1] << (8 - shift)
        torch.bitwise_and(code, 2**bits - 1, out=codes[:, :, place])
    return codes.flatten(1)[:, :count].contiguous()


def pack_zero_point(zero_point: Tensor, bits: int = BITS) -> Tensor:
    """uint8 [out, groups] → int32 [words, groups], packed along `out` as compressed-tensors does."""
    return pack(zero_point.t().contiguous(), bits).t().contiguous()


def unpack_zero_point(packed: Tensor, out_features: int, bits: int = BITS) -> Tensor:
    """The inverse of `pack_zero_point`: int32 [words, groups] → uint8 [out, groups]."""
    return unpack(packed.t().contiguous(), out_features, bits).t().contiguous()


def join_numbers(values: Tensor, width: int) -> Tensor:
    """Numbers of `width` bits (1, 2, 4 or 8), uint8 or bool [n] → uint8 bytes, the first number in the lowest bits."""
    each = 8 // width
    padded = torch.zeros(-(-len(values) // each) * each, dtype=torch.uint8, device=values.device)
    padded[: len(values)] = values
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=values.device)
    return (padded.view(-1, each) << shifts).sum(1, dtype=torch.uint8)


def part_numbers(data: Tensor, width: int) -> Tensor:
    """The inverse of `join_numbers`, with the padding: as many numbers as the bytes hold."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=data.device)
    return ((data.unsqueeze(1) >> shifts) & (2**width - 1)).flatten()
