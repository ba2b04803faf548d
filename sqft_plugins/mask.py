"""Masks: which weights of a sparse base are kept.

The mask M is the nonzero pattern of the pruned float model, decided once, before quantization: INT4 rounds further
weights to zero, so `W_int4 != 0` is not M. On disk a mask is one bit a weight, uint8 [out, ceil(in / 8)], least
significant bit first, 1 = kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sqft_plugins.errors import SQFTError


def nonzero_mask(weight: Tensor) -> Tensor:
    """bool [out, in], True where a weight of the sparse float base is kept."""
    return weight != 0


def check_sparsity(sparsity: float) -> None:
    """Raises SQFTError for a sparsity outside 0..1."""
    if not 0.0 <= sparsity <= 1.0:
        raise SQFTError(f"sparsity={sparsity} is outside 0..1: give the fraction of weights to prune, such as 0.5")


def lowest_mask(score: Tensor, sparsity: float) -> Tensor:
    """bool [out, in], False at the `round(sparsity * in)` lowest scores of each row (ties: the earlier column goes).

    Wanda compares within an output row, and so does this (arXiv 2306.11695, section 3).
    """
    check_sparsity(sparsity)
    pruned = round(sparsity * score.shape[1])
    if pruned == 0:
        return torch.ones_like(score, dtype=torch.bool)
    # selecting the threshold is two to three times faster than sorting the rows
    threshold = torch.kthvalue(score, pruned, dim=1, keepdim=True).values  # [out, 1]
    kept = score > threshold
    tied = score == threshold
    surplus = score.shape[1] - pruned - kept.sum(1)  # [out]: how many of the tied stay
    rows = surplus.nonzero().squeeze(1)
    if rows.numel():
        later = tied[rows].flip(1).cumsum(1).flip(1)  # 1 at the last tied column, 2 at the one before, ...
        kept[rows] |= tied[rows] & (later <= surplus[rows].unsqueeze(1))
    return kept


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
    """The fraction of pruned weights over all masks."""
    kept = sum(int(torch.count_nonzero(mask)) for mask in masks)
    return 1.0 - kept / max(sum(mask.numel() for mask in masks), 1)
