"""Whose are these logits? vLLM says so for the positions that it samples, and for no others.

`compute_logits` has two callers in a step (vLLM 0.32, gpu_model_runner.py): the sampler, with the rows that
`set_active_loras` announced, and `_get_prompt_logprobs_dict`, once for each request that wants the scores of its
prompt (`prompt_logprobs`; `echo` with `logprobs`), with all rows of that request's prompt. An adapter of the output
head has to be that request's then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from vllm_ext.patching import replace_method, restore_method

METHOD = "_get_prompt_logprobs_dict"


def patch_prompt_logits(grouping: Callable[[Any], Any]) -> bool:
    """The scores of prompts are computed one request at a time, with its own adapter. grouping: the Grouping of a
    PunicaWrapperCPU (lora_cpu.py). Idempotent."""

    def make(original):
        def _get_prompt_logprobs_dict(self, hidden_states, num_scheduled_tokens):
            asked: dict[str, int] = self.num_prompt_logprobs
            scores: dict[str, Any] = {}
            if not asked or not self.lora_config:
                return original(self, hidden_states, num_scheduled_tokens)
            try:
                for request in list(asked):
                    self.num_prompt_logprobs = {request: asked[request]}
                    with _owned(self.lora_manager._adapter_manager, self.requests[request].lora_request, grouping):
                        scores |= original(self, hidden_states, num_scheduled_tokens)
                    if request not in self.num_prompt_logprobs:  # its prompt is finished
                        del asked[request]
            finally:
                self.num_prompt_logprobs = asked
            return scores

        return _get_prompt_logprobs_dict

    parameters = ["self", "hidden_states", "num_scheduled_tokens"]
    lost = "the scores of prompts are wrong where an adapter adapts the output head"
    return replace_method(GPUModelRunner, METHOD, parameters, make, lost)


def restore_prompt_logits() -> None:
    """vLLM's own method again."""
    restore_method(GPUModelRunner, METHOD)


@contextmanager
def _owned(manager: Any, lora_request: Any, grouping: Callable[[Any], Any]) -> Iterator[None]:
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
