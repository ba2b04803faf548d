"""Several adapters in one batch of tokens, each at its true rank: y[t] += B_s (A_s x[t]) for the slot s of token t.

The scaling is part of B (vLLM's LoRALayerWeights.optimize). An example, 5 tokens and 2 adapters, `a` of rank 4 in slot
0 and `b` of rank 16 in slot 1:

    token          0     1     2     3     4
    adapter        a     -     b     a     b
    slot           0    -1     1     0     1

    group_tokens → order [0, 3, 2, 4], groups (slot 0, 0:2) and (slot 1, 2:4) of it

    rows 0, 3  meet slot 0:  y[0], y[3] += (x[0], x[3]) @ A_a @ B_a     A_a [in, 4],  B_a [4, out]
    rows 2, 4  meet slot 1:  y[2], y[4] += (x[2], x[4]) @ A_b @ B_b     A_b [in, 16], B_b [16, out]
    row 1      meets none, and y[1] stays

Had they come as a, a, -, b, b, each group would be a slice of the batch, (slot 0, 0:2) and (slot 1, 3:5), with order
None: nothing is copied. That is the case of a prompt, and of a batch that one adapter has for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """The tokens of one adapter.

    slot: vLLM's place for the adapter (`lora_index_to_id[slot]` is its id).
    begin, end: its tokens, in the batch or in `Batch.order`.
    """

    slot: int
    begin: int
    end: int


@dataclass(frozen=True)
class Batch:
    """The tokens of a step by their adapter.

    size: how many tokens there are, those without an adapter among them.
    groups: one an adapter.
    order: int64, the tokens that have an adapter, group by group. None where each group stands together in the batch.
    """

    size: int
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
        return Batch(slots.numel(), [Group(slot, *span) for slot, span in spans.items()])

    groups, begin = [], 0
    for slot, own in rows.items():
        groups.append(Group(slot, begin, begin + own.numel()))
        begin += own.numel()
    return Batch(slots.numel(), groups, torch.cat(list(rows.values())))


@dataclass(frozen=True)
class Slot:
    """One layer's adapter at its true rank, in float32: bfloat16 GEMMs so small cost 20 to 25 us a call in oneDNN
    before they begin, float32's 2 to 8 in all, and at 512 tokens float32 is no slower where there is no AMX (seen).

    A: transposed, of all slices of a fused layer side by side, [in, ranks]. None where x is A x already, [tokens, ranks
    or more]: the A of an embedding is a table that vLLM looks up.
    slices: for each slice with a rank its columns of A, its columns of y, and its B transposed [rank, out].
    """

    A: Tensor | None
    slices: list[tuple[slice, slice, Tensor]]


def true_slot(A: Sequence[Tensor] | None, B: Sequence[Tensor], sizes: Sequence[int]) -> Slot | None:
    """The Slot of an adapter, with copies of its own: of the true rank they are small, and contiguous. None where the
    adapter leaves the layer alone.

    A: of each slice, [(1,) max_rank, in], padded with zeros. None as in Slot.
    B: of each slice, [(1,) out, max_rank], padded with zeros.
    sizes: of the slices of y.
    """
    parts, slices, row, column = [], [], 0, 0
    for index, (b, size) in enumerate(zip(B, sizes, strict=True)):
        b = b.reshape(b.shape[-2:])
        rank = _extent(b.t())
        if A is not None:
            a = A[index].reshape(A[index].shape[-2:])
            rank = min(rank, _extent(a))  # a zero row of A, or column of B, adds nothing
            parts.append(a[:rank])
        if rank:
            width = min(size, b.shape[0])  # logits may be padded
            Bt = b[:width, :rank].t().float().contiguous()
            slices.append((slice(row, row + rank), slice(column, column + width), Bt))
        row += rank
        column += size
    if not slices:
        return None
    return Slot(torch.cat(parts).float().t() if parts else None, slices)


def _extent(rows: Tensor) -> int:
    """How many rows there are before the last ones that are all zero."""
    used = torch.nonzero(rows.any(dim=1))
    return int(used[-1]) + 1 if used.numel() else 0


def add_low_rank(y: Tensor, x: Tensor, batch: Batch, slots: Sequence[Slot | None]) -> None:
    """y [tokens, out] += for each group of `batch` its adapter's B (A x), x [tokens, in]. The sum is float32's, rounded
    to y's dtype before it is added, as vLLM does.

    slots: one a group, None where the adapter leaves the layer alone.
    """
    if not any(slots):
        return
    ordered = x if batch.order is None else x.index_select(0, batch.order)
    together = batch.order is None and y.dtype == torch.float32
    total = y if together else y.new_zeros((ordered.shape[0], y.shape[1]), dtype=torch.float32)

    for group, slot in zip(batch.groups, slots, strict=True):
        if slot is None:
            continue
        tokens = slice(group.begin, group.end)
        h = ordered[tokens].float()
        if slot.A is not None:
            h = h @ slot.A  # [tokens, ranks]
        for rows, columns, Bt in slot.slices:
            total[tokens, columns].addmm_(h if h.shape[1] == Bt.shape[0] else h[:, rows], Bt)

    if batch.order is not None:
        y.index_add_(0, batch.order, total.to(y.dtype))
    elif not together:
        y.add_(total.to(y.dtype))


def expand(y: Tensor, x: Tensor, B: Tensor, batch: Batch) -> None:
    """y [tokens, out] += x [tokens, rank] @ Bᵀ of each group's adapter, in tokens that have one.

    B: [slots, 1, out, rank].
    """
    for group in batch.groups:
        own, rows = B[group.slot].reshape(B.shape[-2:]), batch.rows(group)
        out = (x[rows].float() @ own.float().t()).to(y.dtype)
        width = min(out.shape[1], y.shape[1])
        y[rows, :width] += out[:, :width]
