"""Masks: which weights of a sparse base are kept, and the patterns by which a pruner chooses them.

The mask M is the nonzero pattern of the pruned float model, decided once, before quantization: INT4 rounds further
weights to zero, so `W_int4 != 0` is not M. On disk a mask is one bit a weight, uint8 [out, ceil(in / 8)], least
significant bit first, 1 = kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sqft_plugins.errors import SQFTError


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


def check_sparsity(sparsity: float) -> None:
    """Raises SQFTError for a sparsity outside 0..1."""
    if not 0.0 <= sparsity <= 1.0:
        raise SQFTError(f"sparsity={sparsity} is outside 0..1: give the fraction of weights to prune, such as 0.5")


@dataclass(frozen=True)
class Pattern:
    """What is pruned of each output row: the fraction `sparsity` of it, or, with `keep` and `group`, all but `keep` of
    every `group` neighbours along `in` (N:M: N of M are kept, as in NVIDIA's 2:4; then `sparsity` is 1 - N / M).

    Raises SQFTError for a sparsity outside 0..1 and for an N:M other than 1 <= N <= M.
    """

    sparsity: float
    keep: int | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.keep is None and self.group is None:
            return
        if self.keep is None or self.group is None or not 1 <= self.keep <= self.group:
            raise SQFTError(f"sparsity={self.keep}:{self.group} is no N:M with 1 <= N <= M: keep 2 of 4 with 2:4")
        if self.sparsity != 1 - self.keep / self.group:
            raise SQFTError(
                f"sparsity={self.sparsity} is not that of {self.keep}:{self.group}: use Pattern.parse('{self}')"
            )

    @classmethod
    def parse(cls, value: str | float) -> Pattern:
        """0.5, "0.5", "50%" or "2:4" → the pattern. Raises SQFTError naming the value."""
        text = str(value).strip()
        if pair := re.fullmatch(r"(\d+):(\d+)", text):
            keep, group = int(pair[1]), int(pair[2])
            return cls(1 - keep / group if 1 <= keep <= group else 0.0, keep, group)
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError as error:
            raise SQFTError(
                f"sparsity={value!r} is no pattern: give a fraction such as 0.5 or 50%, or N:M (N of M kept), as 2:4"
            ) from error
        return cls(number)

    def __str__(self) -> str:
        return f"{100 * self.sparsity:.10g}%" if self.group is None else f"{self.keep}:{self.group}"

    def check(self, in_features: int, name: str = "weight") -> None:
        """Raises SQFTError where M does not divide `in_features` of the layer `name`."""
        if self.group is not None and in_features % self.group:
            raise SQFTError(
                f"sparsity={self} does not divide in={in_features} of {name}: "
                f"choose an M that does, a fraction such as {self.sparsity:g}, or exclude the layer"
            )

    def mask(self, score: Tensor) -> Tensor:
        """score [out, in], any float dtype → bool [out, in], True = kept: the highest of each row, or of each group.

        The count is exact: `round(sparsity * in)` of each row are pruned (halves to even), or M - N of each group; of
        equal scores the earlier column goes. Raises SQFTError for a NaN and for an M that does not divide `in`.
        """
        self.check(score.shape[1])
        if bool(torch.isnan(score).any()):
            raise SQFTError("score holds NaN: repair the pruning method, or find the broken weight with `sqft inspect`")
        if self.group is None or self.keep is None:
            return lowest_mask(score, self.sparsity)
        groups = score.reshape(-1, self.group)  # [out * in / M, M]
        return _lowest(groups, self.group - self.keep).reshape(score.shape)


def lowest_mask(score: Tensor, sparsity: float) -> Tensor:
    """bool [out, in], False at the `round(sparsity * in)` lowest scores of each row (ties: the earlier column goes).

    Wanda compares within an output row, and so does this (arXiv 2306.11695, section 3).
    """
    check_sparsity(sparsity)
    return _lowest(score, round(sparsity * score.shape[1]))


def conforms(mask: Tensor, keep: int, group: int) -> float:
    """The fraction of groups of `group` neighbours along `in` in which at most `keep` weights are kept (1.0 for none).

    mask: bool [out, in], True = kept (or a weight: nonzero = kept). A row whose `in` is no multiple of `group` has no
    such groups at its end; they do not conform, so the result is then 0.0.
    """
    if mask.shape[1] % group:
        return 0.0
    kept = mask.bool().reshape(-1, group).sum(1)  # [out * in / M]
    return float((kept <= keep).double().mean()) if kept.numel() else 1.0


def _lowest(score: Tensor, pruned: int) -> Tensor:
    """bool, False at the `pruned` lowest of each row of score [rows, columns]; of equal scores the earlier goes."""
    if pruned == 0:
        return torch.ones_like(score, dtype=torch.bool)
    # selecting the threshold is two to three times faster than sorting the rows
    threshold = torch.kthvalue(score, pruned, dim=1, keepdim=True).values  # [rows, 1]
    kept = score > threshold
    tied = score == threshold
    surplus = score.shape[1] - pruned - kept.sum(1)  # [rows]: how many of the tied stay
    rows = surplus.nonzero().squeeze(1)
    if rows.numel():
        later = tied[rows].flip(1).cumsum(1).flip(1)  # 1 at the last tied column, 2 at the one before, ...
        kept[rows] |= tied[rows] & (later <= surplus[rows].unsqueeze(1))
    return kept


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
