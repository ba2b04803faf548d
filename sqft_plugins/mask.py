"""Masks: which weights of a sparse base are kept. Patterns, by which a pruner chooses them, are in `pattern`.

The mask M is the nonzero pattern of the pruned float model, decided once, before quantization: INT4 rounds further
weights to zero, so `W_int4 != 0` is not M. On disk a mask is one bit a weight, uint8 [out, ceil(in / 8)], least
significant bit first, 1 = kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sqft_plugins.pattern import Pattern as Pattern
from sqft_plugins.pattern import lowest_mask as lowest_mask


def nonzero_mask(weight: Tensor) -> Tensor:
    """bool [out, in], True where a weight is kept: the zero test of the whole project.

    weight: a float weight, or the INT4 steps `code - zero_point`. -0.0 is a zero, NaN is kept.
    """
    return weight != 0


def numeric_mask(weight: Tensor, out: Tensor | None = None) -> Tensor:
    """`nonzero_mask` as 0 and 1 in the dtype of `weight` [rows, in], written into `out` where it is given.

    For products on a CPU, where boolean masks are not vectorized: sign(w)² and a multiplication take a fifth of
    masked_fill_'s time. NaN stays NaN.
    """
    return torch.sign(weight, out=out).square_()


def lost_zeros(weight: Tensor, mask: Tensor) -> int:
    """How many of the weights that `mask` (bool [out, in], True = kept) prunes are not exactly 0.

    weight: [out, in], float, or the INT4 steps `code - zero_point`.
    """
    return int(torch.count_nonzero(weight.masked_fill(mask, 0)))


def conforms(mask: Tensor, keep: int, group: int) -> float:
    """The fraction of groups of `group` neighbours along `in` in which at most `keep` weights are kept (1.0 for none).

    mask: bool [out, in], True = kept (or a weight: nonzero = kept). A row whose `in` is no multiple of `group` has no
    such groups at its end; they do not conform, so the result is then 0.0.
    """
    if mask.shape[1] % group:
        return 0.0
    kept = mask.bool().reshape(-1, group).sum(1)  # [out * in / M]
    return float((kept <= keep).double().mean()) if kept.numel() else 1.0


def packed_mask_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape (out, ceil(in / 8)) of the packed mask of a weight of `shape` (out, in)."""
    return shape[0], -(-shape[-1] // 8)


def pack_mask(mask: Tensor) -> Tensor:
    """bool [out, in] → uint8 [out, ceil(in / 8)], least significant bit first."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy(), axis=1, bitorder="little"))


def unpack_mask(packed: Tensor, in_features: int) -> Tensor:
    """The inverse of `pack_mask`: uint8 [out, ceil(in / 8)] → bool [out, in]."""
    bits = np.unpackbits(packed.cpu().numpy(), axis=1, count=in_features, bitorder="little")
    return torch.from_numpy(bits).bool()


def mask_hash(packed: Mapping[str, Tensor]) -> str:
    """SHA-256 over the names, shapes and bits of packed masks, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(packed):
        digest.update(f"{name}{tuple(packed[name].shape)}".encode())
        digest.update(packed[name].contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def sparsity_of(*masks: Tensor) -> float:
    """The fraction of pruned weights over all masks, or of zeros over all weights."""
    kept = sum(int(torch.count_nonzero(mask)) for mask in masks)
    return 1.0 - kept / max(sum(mask.numel() for mask in masks), 1)
