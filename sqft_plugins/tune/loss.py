"""Cross-entropy at the answer's tokens only.

Gemma's vocabulary has 262,144 entries: logits of a whole batch of prompts would be a gigabyte, most of it thrown away.
The hidden states are therefore picked before the output head, by a hook on the head itself, so that whatever a model
does after it (soft-capping, scaling) still happens and every architecture works.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqft_plugins.structure import head_sees
from sqft_plugins.tune.data import IGNORED


def answer_logits(
    model: nn.Module, head: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor]:
    """logits [answers, vocabulary] and targets [answers] of the labelled tokens.

    model: called with `inputs`; head: its output embedding; labels: [batch, tokens], IGNORED where not learned. The
    hidden state of a token predicts the next one.
    """
    targets = labels[:, 1:]
    keep = targets != IGNORED  # [batch, tokens - 1]
    with head_sees(head, lambda hidden: hidden[:, :-1][keep].unsqueeze(0)):
        logits = model(**inputs, use_cache=False).logits.squeeze(0)
    return logits, targets[keep]


def answer_loss(logits: Tensor, targets: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Sum of the cross-entropies over `count` (default: their number), in float32."""
    total = F.cross_entropy(logits.float(), targets, reduction="sum")
    divisor = targets.numel() if count is None else count
    return total / torch.as_tensor(divisor, device=total.device).clamp(min=1)
