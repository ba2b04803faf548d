"""An adapter that cannot be loaded fails its own requests, not the engine.

A worker loads adapters while it prepares a step; in vLLM 0.32 an exception there ends the engine and every request.
Here the step runs, with an adapter that adds nothing in its place; the worker tells which ids that were, and the
scheduler ends their requests with an error before anything of them is answered or found in the prefix cache.
"""

from __future__ import annotations

import logging
from copy import copy
from typing import Any

import torch
from vllm.distributed import get_tp_group
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.exceptions import RetryableRequestError
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.request import RequestStatus
from vllm.v1.worker.gpu_worker import Worker

from vllm_ext.patching import replace_method

FAILED = "_sqft_failed"
"""In a worker's manager and in its ModelRunnerOutput: {id of an adapter: why it was not loaded}, of this step."""
OTHER_WORKER = "it was not loaded in another worker, whose log says why"
LOST = "an adapter that cannot be loaded when its turn comes ends the engine"
logger = logging.getLogger("vllm.sqft")


def nothing_to_add(lora_int_id: int) -> LoRAModel:
    """An adapter without effect. vLLM takes no LoRA without a single layer, so it has one that no model has."""
    name, zero = "sqft.nothing", torch.zeros(1, 1)
    return LoRAModel(lora_int_id, 1, {name: LoRALayerWeights(name, 1, 1, zero, zero.clone(), scaling=1.0)})


def patch_failures() -> bool:
    """In the worker, the scheduler and the API server. Idempotent."""
    output = ["self", "scheduler_output"]
    return (
        replace_method(LRUCacheWorkerLoRAManager, "_apply_adapters", ["self", "lora_requests"], _make_apply, LOST)
        and replace_method(Worker, "execute_model", output, _make_telling, LOST)
        and replace_method(Worker, "sample_tokens", ["self", "grammar_output"], _make_telling, LOST)
        and replace_method(Scheduler, "update_from_output", [*output, "model_runner_output"], _make_update, LOST)
        and patch_reason()
    )


def patch_reason() -> bool:
    """Hands the reason on to the client: vLLM says `Internal server error` for whatever it is."""
    parameters, lost = ["self", "token_ids", "finish_reason", "stop_reason"], "an adapter's error has no reason"
    return replace_method(RequestState, "_new_completion_output", parameters, _make_completion, lost) and (
        replace_method(
            GenerateBaseServing, "_raise_if_error", ["self", "finish_reason", "request_id"], _make_raise, lost
        )
    )


# --- in the worker ---


def _make_apply(original):
    def _apply_adapters(self, lora_requests):
        failed: dict[int, str] = {}
        setattr(self, FAILED, failed)
        empty: set[int] = self.__dict__.setdefault("_sqft_empty", set())
        requests = {request.lora_int_id: request for request in lora_requests if request}
        for number in empty & requests.keys():  # perhaps it can be loaded now
            self.remove_adapter(number)
        empty -= requests.keys()
        if len(requests) > self._adapter_manager.lora_slots:
            return original(self, lora_requests)
        for number, request in requests.items():
            try:
                self.add_adapter(request)
            except Exception as error:
                failed[number] = str(error).split("\n")[0] or repr(error)
                logger.warning("sqft: adapter %s cannot be loaded: %s", request.lora_name, failed[number])
                _add_empty(self, number)
                empty.add(number)
        if requests:
            failed |= dict.fromkeys(failed_elsewhere(failed.keys(), sorted(requests)), OTHER_WORKER)

    return _apply_adapters


def _add_empty(worker: Any, number: int) -> None:
    manager = worker._adapter_manager
    worker.remove_adapter(number)  # what was half done
    if len(manager) + 1 > manager.capacity:
        manager.remove_oldest_adapter()
    manager.add_adapter(nothing_to_add(number))
    manager.activate_adapter(number)


def failed_elsewhere(failed: Any, numbers: list[int]) -> list[int]:
    """Of the adapters of a step those that another tensor-parallel worker could not load: only one worker's output is
    seen by the scheduler."""
    group = get_tp_group()
    if group.world_size == 1:
        return []
    flags = torch.tensor([number in failed for number in numbers], dtype=torch.int32)
    torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX, group=group.cpu_group)
    return [number for number, flag in zip(numbers, flags.tolist(), strict=True) if flag and number not in failed]


def _make_telling(original):
    def step(self, argument):
        output = original(self, argument)
        failed = getattr(getattr(self.model_runner, "lora_manager", None), FAILED, None)
        return told(output, dict(failed)) if failed else output

    return step


def told(output: Any, failed: dict[int, str]) -> Any:
    """A ModelRunnerOutput, or one to come, that says which adapters were not loaded."""
    if output is None:
        return None
    if isinstance(output, AsyncModelRunnerOutput):
        get_output = output.get_output
        output.get_output = lambda: told(get_output(), failed)  # type: ignore[method-assign]
        return output
    output = copy(output)  # vLLM has one empty output for all
    setattr(output, FAILED, failed)
    return output


# --- in the scheduler ---


def _make_update(original):
    def update_from_output(self, scheduler_output, model_runner_output):
        failed: dict[int, str] = getattr(model_runner_output, FAILED, {})
        requests = [self.requests.get(number) for number in scheduler_output.num_scheduled_tokens] if failed else []
        lost = {
            request.request_id: failed[request.lora_request.lora_int_id]
            for request in requests
            if request is not None and request.lora_request and request.lora_request.lora_int_id in failed
        }
        for name in lost:  # what was computed without the adapter must not be found by the next request
            self.kv_cache_manager.evict_blocks(
                {b for group in self.kv_cache_manager.get_block_ids(name) for b in group}
            )
        ended = self.finish_requests(lost, RequestStatus.FINISHED_ERROR) if lost else []
        outputs = original(self, scheduler_output, model_runner_output)
        for request in ended:
            output = EngineCoreOutput(
                request_id=request.request_id,
                new_token_ids=[],
                finish_reason=FinishReason.ERROR,
                stop_reason=f"adapter {request.lora_request.lora_name}: {lost[request.request_id]}",
                events=request.take_events(),
                trace_headers=request.trace_headers,
            )
            outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(output)
        return outputs

    return update_from_output


# --- in the API server ---


class Told(str):
    """vLLM's finish reason "error", which knows why."""

    reason = ""


def _make_completion(original):
    def _new_completion_output(self, token_ids, finish_reason, stop_reason):
        output = original(self, token_ids, finish_reason, stop_reason)
        if finish_reason == FinishReason.ERROR and isinstance(stop_reason, str):
            output.finish_reason = Told(output.finish_reason)
            output.finish_reason.reason = stop_reason
        return output

    return _new_completion_output


def _make_raise(original):
    def _raise_if_error(self, finish_reason, request_id):
        if isinstance(finish_reason, Told):
            raise RetryableRequestError(finish_reason.reason)
        original(self, finish_reason, request_id)

    return _raise_if_error
