"""vLLM's LoRA on the CPU, computed by low_rank.py: two GEMMs for each adapter in the batch, at its true rank.

vLLM 0.32 gathers a copy of A and B, padded to --max-lora-rank, for every token (`torch_ops.bgmv_*`), and takes the last
slot's for a token without an adapter (`w[-1]`). Here tokens are grouped by adapter once a step; the results are the
same, up to the order of sums. In a step:

1. `activate_adapter`   an adapter comes into a slot of vLLM's: what is known of the one before is forgotten
2. `update_metadata`    vLLM says which token has which slot: the tokens are grouped
3. `add_lora_linear`, `add_lora_embedding`, `add_shrink` and `add_expand`    each layer, by the groups of all tokens
4. `add_lora_logits`    by the groups of the sampled positions
5. `_get_prompt_logprobs_dict`    the scores of prompts. vLLM computes logits here, too, once for each request that
   wants them (`prompt_logprobs`; `echo` with `logprobs`), with all rows of its prompt, and does not say whose they are:
   they are given to that request's adapter
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ext.adapters.low_rank import Batch, Group, Slot, add_low_rank, expand, group_tokens, true_slot
from vllm_ext.patching import Replacement, apply, replaces
from vllm_ext.variables import LORA_CPU

if TYPE_CHECKING:
    from vllm.lora.layers import LoRAMapping

LOSS = "LoRA on the CPU stays slow, and wrong for requests without an adapter beside others with one"


class Grouping:
    """What a PunicaWrapperCPU knows beside its indices: groups of this step, true ranks of the adapters loaded now."""

    def __init__(self) -> None:
        self.tokens = self.samples = Batch(-1, [])
        self.owner: int | None = None  # the slot of the request that all rows of the next logits belong to
        self._layers: dict[int, tuple[Any, dict[int, Slot | None]]] = {}

    def update(self, tokens: Tensor, samples: Tensor) -> None:
        """A new step. tokens, samples: the slot of each token and of each sampled position, -1 without adapter."""
        self.tokens, self.samples = group_tokens(tokens), group_tokens(samples)

    def logits(self, rows: int) -> Batch:
        """The adapters of so many rows of logits: of the sampled positions, or all of one request."""
        if self.owner is None:
            return self.samples
        return Batch(rows, [Group(self.owner, 0, rows)] if self.owner >= 0 else [])

    def forget(self, slot: int) -> None:
        """The slot has another adapter now."""
        for _, slots in self._layers.values():
            slots.pop(slot, None)

    def slots(
        self, batch: Batch, layer: Any, A: Sequence[Tensor] | None, B: Sequence[Tensor], sizes: Sequence[int]
    ) -> list[Slot | None]:
        """For each group of a batch its adapter, as a layer needs it; None where the adapter leaves the layer alone.

        layer: an object that is always the same for a layer.
        A, B: the layer's stacks, one a slice, [slots, 1, rank, in] and [slots, 1, out, rank]. A is None as in Slot.
        sizes: of y's slices.
        """
        known = self._layers.get(id(layer))
        if known is None or known[0] is not layer:  # the object is kept, so that its id cannot become another's
            known = self._layers[id(layer)] = (layer, {})

        found = known[1]
        for slot, _, _ in batch.groups:
            if slot not in found:
                found[slot] = true_slot(None if A is None else [a[slot] for a in A], [b[slot] for b in B], sizes)
        return [found[slot] for slot, _, _ in batch.groups]


def grouping(wrapper: Any) -> Grouping:
    """That of a PunicaWrapperCPU, made when it is first asked for, from the step that runs."""
    found = wrapper.__dict__.get("_sqft_grouping")
    if found is None:
        found = wrapper._sqft_grouping = Grouping()
        if wrapper.indices_len[0] is not None:
            found.update(wrapper.token_lora_indices, wrapper.sampler_indices)
    return found


def _batch(wrapper: Any, tokens: int) -> Batch:
    state = grouping(wrapper)
    return state.tokens if tokens == state.tokens.size else group_tokens(wrapper.token_lora_indices[:tokens])


@replaces(LoRAModelManager, LOSS)
def activate_adapter(self: LoRAModelManager, lora_id: int) -> bool:
    changed = activate_adapter.original(self, lora_id)
    if changed:
        for wrapper in self.punica_wrapper_mapping.values():
            grouping(wrapper).forget(self.lora_index_to_id.index(lora_id))
    return changed


@replaces(PunicaWrapperCPU, LOSS)
def update_metadata(
    self: PunicaWrapperCPU, mapping: LoRAMapping, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int,
    **kwargs: Any,
) -> None:  # fmt: skip
    update_metadata.original(self, mapping, lora_index_to_id, max_loras, vocab_size, **kwargs)
    grouping(self).update(self.token_lora_indices, self.sampler_indices)


@replaces(PunicaWrapperCPU, LOSS)
def add_lora_linear(
    self: PunicaWrapperCPU, y: Tensor, x: Tensor, lora_a_stacked: tuple[Tensor, ...],
    lora_b_stacked: tuple[Tensor, ...], scale: float, output_slices: tuple[int, ...], *,
    buffer: tuple[Tensor, ...] | None = None, **kwargs: Any,
) -> None:  # fmt: skip
    if buffer is not None or scale != 1.0:  # no layer of vLLM 0.32 does
        stacked = lora_a_stacked, lora_b_stacked
        return add_lora_linear.original(self, y, x, *stacked, scale, output_slices, buffer=buffer, **kwargs)

    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    batch = _batch(self, x.shape[0])
    slots = grouping(self).slots(batch, lora_b_stacked, A=lora_a_stacked, B=lora_b_stacked, sizes=output_slices)
    add_low_rank(y, x, batch, slots)
    return None


@replaces(PunicaWrapperCPU, LOSS)
def add_lora_logits(
    self: PunicaWrapperCPU, y: Tensor, x: Tensor, lora_a_stacked: Tensor, lora_b_stacked: Tensor, scale: float, *,
    buffer: Tensor | None = None, **kwargs: Any,
) -> None:  # fmt: skip
    if buffer is not None or scale != 1.0:
        return add_lora_logits.original(self, y, x, lora_a_stacked, lora_b_stacked, scale, buffer=buffer, **kwargs)

    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    batch, sizes = grouping(self).logits(x.shape[0]), [y.shape[-1]]
    slots = grouping(self).slots(batch, lora_b_stacked, A=[lora_a_stacked], B=[lora_b_stacked], sizes=sizes)
    if any(slots) and x.shape[0] != batch.size:
        raise RuntimeError(f"sqft: logits of {x.shape[0]} rows, {batch.size} positions are sampled: whose?")
    add_low_rank(y, x, batch, slots)
    return None


@replaces(PunicaWrapperCPU, LOSS)
def add_lora_embedding(
    self: PunicaWrapperCPU, y: Tensor, x: Tensor, lora_b_stacked: Tensor, add_inputs: bool = True, **kwargs: Any
) -> None:
    if not add_inputs:  # no layer of vLLM 0.32 does
        return add_lora_embedding.original(self, y, x, lora_b_stacked, add_inputs, **kwargs)

    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    batch = _batch(self, x.shape[0])
    slots = grouping(self).slots(batch, lora_b_stacked, A=None, B=[lora_b_stacked], sizes=[y.shape[-1]])
    add_low_rank(y, x, batch, slots)
    return None


@replaces(PunicaWrapperCPU, LOSS)
def add_shrink(
    self: PunicaWrapperCPU, y: tuple[Tensor, ...], x: Tensor, lora_a_stacked: tuple[Tensor, ...], scale: float,
    **kwargs: Any,
) -> None:  # fmt: skip
    """With `fully_sharded_loras`: the other part of the rank is in another process."""
    x = x.view(-1, x.shape[-1])
    batch = _batch(self, x.shape[0])
    for out, A in zip(y, lora_a_stacked, strict=True):
        out = out.view(-1, out.shape[-1])
        for group in batch.groups:
            own, rows = A[group.slot].reshape(A.shape[-2:]), batch.rows(group)
            out[rows, : own.shape[0]] = (x[rows].float() @ own.float().t() * scale).to(out.dtype)


@replaces(PunicaWrapperCPU, LOSS)
def add_expand(
    self: PunicaWrapperCPU, y: Tensor, x: tuple[Tensor, ...], lora_b_stacked: tuple[Tensor, ...],
    output_slices: tuple[int, ...], offset_start: int = 0, add_inputs: bool = True, **kwargs: Any,
) -> None:  # fmt: skip
    """After `add_shrink`."""
    if not add_inputs:  # no layer of vLLM 0.32 does
        return add_expand.original(self, y, x, lora_b_stacked, output_slices, offset_start, add_inputs, **kwargs)

    y = y.view(-1, y.shape[-1])
    begin = offset_start
    for part, B, size in zip(x, lora_b_stacked, output_slices, strict=True):
        part = part.view(-1, part.shape[-1])
        expand(y[:, begin : begin + size], part, B, _batch(self, part.shape[0]))
        begin += size
    return None


@replaces(GPUModelRunner, LOSS)
def _get_prompt_logprobs_dict(
    self: GPUModelRunner, hidden_states: Tensor, num_scheduled_tokens: dict[str, int]
) -> dict[str, Any]:
    asked: dict[str, int] = self.num_prompt_logprobs
    scores: dict[str, Any] = {}
    vllms_own = _get_prompt_logprobs_dict.original
    if not asked or not self.lora_config:
        return vllms_own(self, hidden_states, num_scheduled_tokens)

    try:
        for request in list(asked):
            self.num_prompt_logprobs = {request: asked[request]}
            with _owned(self.lora_manager._adapter_manager, self.requests[request].lora_request):
                scores |= vllms_own(self, hidden_states, num_scheduled_tokens)
            if request not in self.num_prompt_logprobs:  # its prompt is finished
                del asked[request]
    finally:
        self.num_prompt_logprobs = asked
    return scores


@contextmanager
def _owned(manager: Any, lora_request: Any) -> Iterator[None]:
    """All logits meanwhile belong to a request with this LoRARequest, or None. manager: vLLM's LoRAModelManager."""
    ids = manager.lora_index_to_id
    number = None if lora_request is None else lora_request.lora_int_id
    owner = ids.index(number) if number in ids and number is not None else -1
    states = [grouping(wrapper) for wrapper in manager.punica_wrapper_mapping.values()]
    for state in states:
        state.owner = owner
    try:
        yield
    finally:
        for state in states:
            state.owner = None


REPLACEMENTS: list[Replacement] = [
    activate_adapter, update_metadata, add_lora_linear, add_lora_logits, add_lora_embedding, add_shrink, add_expand,
    _get_prompt_logprobs_dict,
]  # fmt: skip


def patch_lora_cpu() -> bool:
    """Ours, unless SQFT_LORA_CPU is 0: all of the methods or none. Idempotent."""
    return os.environ.get(LORA_CPU) != "0" and apply(*REPLACEMENTS)
