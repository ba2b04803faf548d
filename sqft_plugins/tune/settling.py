"""The text on which an adapter settles to its codes: what it has learned, in pieces of one length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from sqft_plugins.tune.data import Row

SEQUENCES, LENGTH = 32, 128
"""At most 4,096 tokens, which go through a block at once; twice as many take three times as long."""


def settling_text(rows: Sequence[Row], context: int | None = None, sequences: int = SEQUENCES) -> Tensor:
    """int64 [at most `sequences`, at most 128]: the first rows, each once, one after the other without padding.

    rows: in training order; those of a second epoch say nothing new. context: tokens that the model takes; None: any.
    """
    seen = dict.fromkeys(tuple(row["input_ids"]) for row in rows)
    length = min(LENGTH, context or LENGTH)
    tokens = torch.tensor(list(chain.from_iterable(seen))[: sequences * length], dtype=torch.int64)
    length = min(length, len(tokens))
    return tokens[: len(tokens) // length * length].view(-1, length)
