"""Several examples in one row without seeing each other, so that less of a batch is padding.

A batch keeps its examples: they are only laid into fewer rows, as wide as its longest example. Positions begin at 0
with each of them; from that, and from the absence of an attention mask, transformers makes a block-diagonal mask
(masking_utils.find_packed_sequence_indices). Not every family asks for it, so `check_packing` tries the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.errors import SQFTError
from sqft_plugins.modes import evaluating
from sqft_plugins.tune.data import IGNORED, Row, padded


def fill_rows(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Indices of the examples of each row: the longest first, each into the first row that has enough places free."""
    rows: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = next((row for row, left in enumerate(free) if left >= lengths[index]), None)
        if place is None:
            rows.append([])
            free.append(width)
            place = len(rows) - 1
        rows[place].append(index)
        free[place] -= lengths[index]
    return rows


@dataclass
class PackingCollator:
    """Lays a batch into as few rows as it needs → input_ids, position_ids, labels, each int64 [rows, tokens]."""

    pad: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        lengths = [len(row["input_ids"]) for row in rows]
        lines = [[rows[index] for index in indices] for indices in fill_rows(lengths, max(lengths))]
        tokens = [[row["input_ids"] for row in line] for line in lines]
        positions = [[range(len(part)) for part in parts] for parts in tokens]
        # the first token follows nothing of its own example
        labels = [[[IGNORED, *row["labels"][1:]] for row in line] for line in lines]

        return {
            "input_ids": padded([list(chain(*parts)) for parts in tokens], self.pad),
            # padding at position 0 is a sequence of its own, which nobody sees
            "position_ids": padded([list(chain(*parts)) for parts in positions], 0),
            "labels": padded([list(chain(*parts)) for parts in labels], IGNORED),
        }


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Raises SQFTError for a model in which the second example of a row sees the first: with another first one, its
    logits change. (A masked place counts exactly 0, so equal means equal in every dtype.)"""
    config = model.config.get_text_config()
    device = next(model.parameters()).device
    tokens = torch.arange(1, 9, device=device).repeat(2, 1) % config.vocab_size  # [2, 8]
    positions = torch.arange(4, device=device).repeat(2, 2)  # twice 0 1 2 3
    seen = []
    with evaluating(model):
        for first in (tokens[:, :4], tokens[:, :4].flip(1)):
            row = torch.cat([first, tokens[:, 4:]], dim=1)
            seen.append(model(input_ids=row, position_ids=positions, use_cache=False).logits[:, 4:])
    if not torch.equal(*seen):
        raise SQFTError(
            f"packing: in a model of type {config.model_type} the examples of one row would see each other: leave "
            "--packing out"
        )
