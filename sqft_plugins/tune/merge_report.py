"""What a merge is judged by, and what it reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sqft_plugins.elastic import Rank

TEXT = "The quick brown fox jumps over the lazy dog. Question: what is 7 + 5?\nAnswer: 12"


SUMMATION = 1e-3
"""Of the largest logit: more than float32 sums in another order make (2e-6 seen), less than a weight that is lost."""


class Probe:
    """The logits of an unmerged model on a short text, with which the merged one is compared. largest: of them."""

    def __init__(self, tokenizer: Any, tuned: Any):
        self._tokens = tokenizer(TEXT, return_tensors="pt").input_ids
        # with gradients on, SQFT layers take the path of training, not the merged weight that evaluation keeps
        with torch.enable_grad():
            self._logits = tuned(input_ids=self._tokens).logits.detach()
        self.largest = float(self._logits.abs().max())

    def difference(self, merged: Any) -> float:
        """The largest difference of a logit."""
        with torch.no_grad():
            return float((merged(input_ids=self._tokens).logits - self._logits).abs().max())


@dataclass
class MergeReport:
    """What a merge did. int4, codes_changed: of a quantization-aware adapter alone.

    base: the model that the adapter was trained over.
    rank: as it was asked for.
    max_logit_difference: between the unmerged forward pass of training and the merged model, in float32; None where the
        memory did not allow to compare.
    zeros_lost: pruned weights of the base that are no longer zero: 0 for a masked adapter, nearly all for a plain LoRA.
    modules: how many modules were adapted.
    int4: the INT4 folder whose codes were changed.
    codes_changed: the fraction of kept codes that the adapter has moved.
    """

    out: str
    base: str
    adapter: str
    rank: Rank
    max_logit_difference: float | None
    zeros_lost: int
    modules: int
    seconds: float
    int4: str | None = None
    codes_changed: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}
