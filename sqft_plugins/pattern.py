"""Patterns: how many weights of a layer a pruner removes, and which, given their scores.

Options are checked with patterns before anything heavy is imported, so torch is imported where a mask is made.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqft_plugins.errors import SQFTError

if TYPE_CHECKING:
    from torch import Tensor


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
        if bool(score.isnan().any()):
            raise SQFTError("score holds NaN: repair the pruning method, or find the broken weight with `sqft inspect`")
        if self.group is None or self.keep is None:
            return lowest_mask(score, self.sparsity)
        groups = score.reshape(-1, self.group)  # [out * in / M, M]
        return _lowest(groups, self.group - self.keep).reshape(score.shape)


PATTERNS = (Pattern.parse("1:4"), Pattern.parse("2:4"), Pattern.parse("4:8"))
"""The N:M that are always looked for, strictest first: what conforms to 1:4 conforms to 2:4, and that to 4:8."""


def asked_patterns(pattern: str | None) -> tuple[Pattern, ...]:
    """`PATTERNS` and the one that was asked for. Raises SQFTError where that is no N:M."""
    if pattern is None:
        return PATTERNS
    if ":" not in pattern:
        raise SQFTError(f"--pattern {pattern} is no N:M: give one such as 2:4 (2 kept of every 4 neighbours)")
    asked = Pattern.parse(pattern)
    return tuple(sorted({*PATTERNS, asked}, key=lambda one: (-one.sparsity, one.group or 0)))


def lowest_mask(score: Tensor, sparsity: float) -> Tensor:
    """bool [out, in], False at the `round(sparsity * in)` lowest scores of each row (ties: the earlier column goes).

    Wanda compares within an output row, and so does this (arXiv 2306.11695, section 3).
    """
    check_sparsity(sparsity)
    return _lowest(score, round(sparsity * score.shape[1]))


def _lowest(score: Tensor, pruned: int) -> Tensor:
    """bool, False at the `pruned` lowest of each row of score [rows, columns]; of equal scores the earlier goes."""
    import torch

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
