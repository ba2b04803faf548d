"""The tokens of a batch by their adapter, computed once a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """slot: vLLM's place for the adapter (`lora_index_to_id[slot]` is its id). begin, end: its tokens."""

    slot: int
    begin: int
    end: int


@dataclass(frozen=True)
class Batch:
    """groups: one an adapter. order: int64, the tokens that have one, group by group, begin and end count in it; None
    where each group stands together in the batch, begin and end are its tokens then."""

    groups: list[Group]
    order: Tensor | None = None

    def rows(self, group: Group) -> slice | Tensor:
        """A group's tokens in the batch."""
        return slice(group.begin, group.end) if self.order is None else self.order[group.begin : group.end]


def group_tokens(slots: Tensor) -> Batch:
    """slots: int64 [tokens], -1 for a token without an adapter, which is in no group."""
    rows = {slot: torch.nonzero(slots == slot).flatten() for slot in torch.unique(slots).tolist() if slot >= 0}
    spans = {slot: (int(own[0]), int(own[-1]) + 1) for slot, own in rows.items()}
    if all(end - begin == rows[slot].numel() for slot, (begin, end) in spans.items()):
        return Batch([Group(slot, *span) for slot, span in spans.items()])
    groups, begin = [], 0
    for slot, own in rows.items():
        groups.append(Group(slot, begin, begin + own.numel()))
        begin += own.numel()
    return Batch(groups, torch.cat(list(rows.values())))
