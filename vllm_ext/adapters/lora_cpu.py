"""vLLM's LoRA on the CPU, two GEMMs for each adapter in the batch, at its true rank.

vLLM 0.32 gathers a copy of A and B, padded to --max-lora-rank, for every token (`torch_ops.bgmv_*`), and takes the last
slot's for a token without an adapter (`w[-1]`). Here tokens are grouped by adapter once a step; the results are the
same, up to the order of sums.

Equations: y[t] += B_s (A_s x[t]) for the slot s of token t, the scaling being part of B (LoRALayerWeights.optimize).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.platforms import current_platform

from vllm_ext.adapters.groups import Batch, Group, group_tokens
from vllm_ext.adapters.logits import patch_prompt_logits, restore_prompt_logits
from vllm_ext.patching import replace_method, restore_method
from vllm_ext.variables import LORA_CPU


@dataclass(frozen=True)
class Slot:
    """One layer's adapter at its true rank, in float32: bfloat16 GEMMs so small cost 20 to 25 us a call in oneDNN
    before they begin, float32's 2 to 8 in all, and at 512 tokens float32 is no slower where there is no AMX (seen).

    A: transposed, of all slices side by side, [in, ranks]. slices: for each with a rank: (its columns of A, its columns
    of y, B transposed [rank, out])."""

    A: Tensor
    slices: list[tuple[slice, slice, Tensor]]


class Grouping:
    """What a PunicaWrapperCPU knows beside its indices: groups of this step, true ranks of the adapters loaded now."""

    def __init__(self) -> None:
        self.tokens = self.samples = Batch([])
        self.count = self.sampled = -1
        self.owner: int | None = None  # the slot of the request that all rows of the next logits belong to
        self._layers: dict[int, tuple[Any, dict[int, Slot | None]]] = {}

    def update(self, tokens: Tensor, samples: Tensor) -> None:
        """A new step. tokens, samples: the slot of each token and of each sampled position, -1 without adapter."""
        self.count, self.sampled = tokens.numel(), samples.numel()
        self.tokens, self.samples = group_tokens(tokens), group_tokens(samples)

    def logits(self, rows: int) -> Batch:
        """The adapters of so many rows of logits: of the sampled positions, or all of one request (logits.py)."""
        if self.owner is None:
            return self.samples
        return Batch([Group(self.owner, 0, rows)] if self.owner >= 0 else [])

    def forget(self, slot: int) -> None:
        """The slot has another adapter now."""
        for _, slots in self._layers.values():
            slots.pop(slot, None)

    def slot(self, key: Any, A: Sequence[Tensor], B: Sequence[Tensor], sizes: Sequence[int], slot: int) -> Slot | None:
        """A, B: a layer's stacks, one a slice, [slots, 1, rank, in] and [slots, 1, out, rank]. sizes: of y's slices.
        key: an object that is always the same for a layer. None where the adapter leaves the layer alone."""
        known = self._layers.get(id(key))
        if known is None or known[0] is not key:  # the object is kept, so that its id cannot become another's
            known = self._layers[id(key)] = (key, {})
        if slot not in known[1]:
            known[1][slot] = true_slot([a[slot] for a in A], [b[slot] for b in B], sizes)
        return known[1][slot]

    def embedding(self, B: Tensor, size: int, slot: int) -> Tensor | None:
        """B of an embedding, transposed [rank, size] at its true rank; its A is a table that vLLM looks up. None where
        the adapter leaves the embedding alone, as nearly all do."""
        eye = torch.eye(B.shape[-1]).expand(B.shape[0], 1, -1, -1)
        found = self.slot(B, [eye], [B], [size], slot)
        return None if found is None else found.slices[0][2]


def true_slot(A: Sequence[Tensor], B: Sequence[Tensor], sizes: Sequence[int]) -> Slot | None:
    """A: [(1,) max_rank, in], B: [(1,) out, max_rank] of each slice, padded with zeros. The Slot has copies of its own:
    of the true rank they are small, and contiguous."""
    parts, slices, row, column = [], [], 0, 0
    for a, b, size in zip(A, B, sizes, strict=True):
        a, b = a.reshape(a.shape[-2:]), b.reshape(b.shape[-2:])
        rank = min(_extent(a), _extent(b.t()))  # a zero row of A, or column of B, adds nothing
        if rank:
            width = min(size, b.shape[0])  # logits may be padded
            Bt = b[:width, :rank].t().float().contiguous()
            slices.append((slice(row, row + rank), slice(column, column + width), Bt))
            parts.append(a[:rank])
            row += rank
        column += size
    return Slot(torch.cat(parts).float().t(), slices) if parts else None


def _extent(rows: Tensor) -> int:
    """How many rows there are before the last ones that are all zero."""
    used = torch.nonzero(rows.any(dim=1))
    return int(used[-1]) + 1 if used.numel() else 0


def add_low_rank(y: Tensor, x: Tensor, batch: Batch, slots: Sequence[Slot | None]) -> None:
    """y [tokens, out] += for each group of `batch` its adapter's B (A x), x [tokens, in]. slots: one a group. The sum
    is float32's, rounded to y's dtype before it is added, as vLLM does."""
    if not any(slots):
        return
    ordered = x if batch.order is None else x.index_select(0, batch.order)
    together = batch.order is None and y.dtype == torch.float32
    total = y if together else y.new_zeros((ordered.shape[0], y.shape[1]), dtype=torch.float32)
    for group, slot in zip(batch.groups, slots, strict=True):
        if slot is None:
            continue
        tokens = slice(group.begin, group.end)
        h = ordered[tokens].float() @ slot.A  # [tokens, ranks]
        for rows, columns, Bt in slot.slices:
            total[tokens, columns].addmm_(h if len(slot.slices) == 1 else h[:, rows], Bt)
    if batch.order is not None:
        y.index_add_(0, batch.order, total.to(y.dtype))
    elif not together:
        y.add_(total.to(y.dtype))


def patch_lora_cpu() -> bool:
    """Replaces the computing methods of PunicaWrapperCPU, all of them or none. Idempotent."""
    if os.environ.get(LORA_CPU) == "0" or not current_platform.is_cpu():
        return False
    lost = "LoRA on the CPU stays slow, and wrong for requests without an adapter beside others with one"
    done: list[tuple[type, str]] = []
    for owner, name, parameters, make in _METHODS:
        if not replace_method(owner, name, parameters, make, lost):
            for place in done:
                restore_method(*place)
            return False
        done.append((owner, name))
    return patch_prompt_logits(grouping)


def restore_lora_cpu() -> None:
    """vLLM's own methods again."""
    for owner, name, _, _ in _METHODS:
        restore_method(owner, name)
    restore_prompt_logits()


def grouping(wrapper: Any) -> Grouping:
    """That of a PunicaWrapperCPU, made when it is first asked for."""
    found = wrapper.__dict__.get("_sqft_grouping")
    if found is None:
        found = wrapper._sqft_grouping = Grouping()
    return found


def _update_metadata(original):
    def update_metadata(self, mapping, lora_index_to_id, max_loras, vocab_size, **kwargs):
        original(self, mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
        grouping(self).update(self.token_lora_indices, self.sampler_indices)

    return update_metadata


def _activate_adapter(original):
    def activate_adapter(self, lora_id):
        changed = original(self, lora_id)
        if changed:
            for wrapper in self.punica_wrapper_mapping.values():
                grouping(wrapper).forget(self.lora_index_to_id.index(lora_id))
        return changed

    return activate_adapter


def _batch(wrapper: Any, tokens: int) -> Batch:
    state = grouping(wrapper)
    return state.tokens if tokens == state.count else group_tokens(wrapper.token_lora_indices[:tokens])


def _add_lora_linear(original):
    def add_lora_linear(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, *, buffer=None, **kwargs):
        if buffer is not None or scale != 1.0:  # no layer of vLLM 0.32 does
            return original(self, y, x, lora_a_stacked, lora_b_stacked, scale, output_slices, buffer=buffer, **kwargs)
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        state, batch = grouping(self), _batch(self, x.shape[0])
        stacks = (lora_b_stacked, lora_a_stacked, lora_b_stacked, output_slices)
        add_low_rank(y, x, batch, [state.slot(*stacks, group.slot) for group in batch.groups])
        return None

    return add_lora_linear


def _add_lora_logits(original):
    def add_lora_logits(self, y, x, lora_a_stacked, lora_b_stacked, scale, *, buffer=None, **kwargs):
        if buffer is not None or scale != 1.0:
            return original(self, y, x, lora_a_stacked, lora_b_stacked, scale, buffer=buffer, **kwargs)
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        state = grouping(self)
        stacks = (lora_b_stacked, [lora_a_stacked], [lora_b_stacked], [y.shape[-1]])
        batch = state.logits(x.shape[0])
        slots = [state.slot(*stacks, group.slot) for group in batch.groups]
        if any(slots) and state.owner is None and x.shape[0] != state.sampled:
            raise RuntimeError(f"sqft: logits of {x.shape[0]} rows, {state.sampled} positions are sampled: whose?")
        add_low_rank(y, x, batch, slots)
        return None

    return add_lora_logits


def _add_shrink(original):  # with `fully_sharded_loras`, where the other half of the rank is in another process
    def add_shrink(self, y, x, lora_a_stacked, scale, **kwargs):
        x = x.view(-1, x.shape[-1])
        for out, A in zip(y, lora_a_stacked, strict=True):
            out = out.view(-1, out.shape[-1])
            batch = _batch(self, x.shape[0])
            for group in batch.groups:
                own, rows = A[group.slot].reshape(A.shape[-2:]), batch.rows(group)
                out[rows, : own.shape[0]] = (x[rows].float() @ own.float().t() * scale).to(out.dtype)

    return add_shrink


def _add_expand(original):
    def add_expand(self, y, x, lora_b_stacked, output_slices, offset_start=0, add_inputs=True, **kwargs):
        y = y.view(-1, y.shape[-1])
        begin = offset_start
        for part, B, size in zip(x, lora_b_stacked, output_slices, strict=True):
            part = part.view(-1, part.shape[-1])
            _expand(y[:, begin : begin + size], part, B, _batch(self, part.shape[0]), add_inputs)
            begin += size

    return add_expand


def _add_lora_embedding(original):
    def add_lora_embedding(self, y, x, lora_b_stacked, add_inputs=True, **kwargs):
        y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
        state, batch = grouping(self), _batch(self, x.shape[0])
        if not add_inputs:  # no layer of vLLM 0.32 does
            _expand(y, x, lora_b_stacked, batch, add=False)
            return
        for group in batch.groups:
            Bt = state.embedding(lora_b_stacked, y.shape[1], group.slot)
            if Bt is not None:
                rows = batch.rows(group)
                y[rows, : Bt.shape[1]] += (x[rows, : Bt.shape[0]].float() @ Bt).to(y.dtype)

    return add_lora_embedding


def _expand(y: Tensor, x: Tensor, B: Tensor, batch: Batch, add: bool) -> None:
    """y [tokens, out] += or = x [tokens, rank] @ Bᵀ of each group's adapter, in tokens that have one."""
    for group in batch.groups:
        own, rows = B[group.slot].reshape(B.shape[-2:]), batch.rows(group)
        out = (x[rows].float() @ own.float().t()).to(y.dtype)
        width = min(out.shape[1], y.shape[1])
        y[rows, :width] = y[rows, :width] + out[:, :width] if add else out[:, :width]


_METHODS: list[tuple[type, str, list[str], Any]] = [
    (PunicaWrapperCPU, "update_metadata", ["self", "mapping", "lora_index_to_id", "max_loras", "vocab_size", "kwargs"],
     _update_metadata),
    (LoRAModelManager, "activate_adapter", ["self", "lora_id"], _activate_adapter),
    (PunicaWrapperCPU, "add_shrink", ["self", "y", "x", "lora_a_stacked", "scale", "kwargs"], _add_shrink),
    (PunicaWrapperCPU, "add_expand",
     ["self", "y", "x", "lora_b_stacked", "output_slices", "offset_start", "add_inputs", "kwargs"], _add_expand),
    (PunicaWrapperCPU, "add_lora_embedding", ["self", "y", "x", "lora_b_stacked", "add_inputs", "kwargs"],
     _add_lora_embedding),
    (PunicaWrapperCPU, "add_lora_logits",
     ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "buffer", "kwargs"], _add_lora_logits),
    (PunicaWrapperCPU, "add_lora_linear",
     ["self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices", "buffer", "kwargs"],
     _add_lora_linear),
]  # fmt: skip
