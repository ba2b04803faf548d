"""What goes wrong with one adapter stays with its own requests.

An adapter that cannot be loaded fails its own requests, not the engine. A worker loads adapters while it prepares a
step; in vLLM 0.32 an exception there ends the engine and every request. Here the step runs, with an adapter that adds
nothing in its place:

1. worker, `_apply_adapters`: notes which adapters of the step failed, and why; each gets an empty one
2. worker, `execute_model` and `sample_tokens`: hand the note on with what the step has computed
3. engine core, `update_from_output`: ends their requests with an error, before anything of them is answered or found in
   the prefix cache
4. API server, `_new_completion_output` and `_raise_if_error`: the client gets a 503 with the reason

No request computes with what another one left in the cache (`add_request`, `_zero_block_ids`). vLLM hands its blocks
out as they are (0.32: `KVCacheConfig.needs_kv_cache_zeroing` is false for plain attention). Its CPU attention
multiplies what lies behind the end of a sequence by 0, and 0 times NaN or infinity is NaN: one request whose numbers
overflowed, such as those of an adapter that was trained too hard, spoils all who get its blocks next. So a block is
cleared when it is handed out, as vLLM itself does for Mamba.

No version of an adapter is taken for another (`__eq__`, `__hash__`). vLLM 0.32 collects the LoRARequests of a batch in
a set and compares them by name: of an adapter that was replaced while requests ran, one version was left out, and the
engine ended with a KeyError.
"""

from __future__ import annotations

import logging
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed import get_tp_group
from vllm.entrypoints.generate.base.serving import GenerateBaseServing
from vllm.exceptions import RetryableRequestError
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.request import LoRARequest
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.engine.output_processor import RequestState
from vllm.v1.kv_cache_interface import AttentionSpec, CircularBufferSpec
from vllm.v1.outputs import AsyncModelRunnerOutput
from vllm.v1.request import RequestStatus
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from vllm_ext.patching import replaces

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request

FAILED = "_sqft_failed"
"""In a worker's manager and in its ModelRunnerOutput: {id of an adapter: why it was not loaded}, of this step."""
NO_REASON = "an adapter's error has no reason"
OTHER_WORKER = "it was not loaded in another worker, whose log says why"
LOST = "an adapter that cannot be loaded when its turn comes ends the engine"
SPOILED = "a NaN may spoil later answers"
ENDED = "an adapter that is replaced while requests run ends the engine"
logger = logging.getLogger("vllm.sqft")


def nothing_to_add(lora_int_id: int) -> LoRAModel:
    """An adapter without effect. vLLM takes no LoRA without a single layer, so it has one that no model has."""
    name, zero = "sqft.nothing", torch.zeros(1, 1)
    return LoRAModel(lora_int_id, 1, {name: LoRALayerWeights(name, 1, 1, zero, zero.clone(), scaling=1.0)})


# --- an adapter that cannot be loaded: in the worker ---


@replaces(LRUCacheWorkerLoRAManager, LOST)
def _apply_adapters(self: LRUCacheWorkerLoRAManager, lora_requests: set[LoRARequest]) -> None:
    failed: dict[int, str] = {}
    setattr(self, FAILED, failed)
    empty: set[int] = self.__dict__.setdefault("_sqft_empty", set())
    requests = {request.lora_int_id: request for request in lora_requests if request}

    # those that could not be loaded before: perhaps they can now
    for number in empty & requests.keys():
        self.remove_adapter(number)
    empty -= requests.keys()
    if len(requests) > self._adapter_manager.lora_slots:
        return _apply_adapters.original(self, lora_requests)

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


@replaces(Worker, LOST)
def execute_model(self: Worker, scheduler_output: SchedulerOutput) -> Any:
    return _with_failures(self, execute_model.original(self, scheduler_output))


@replaces(Worker, LOST)
def sample_tokens(self: Worker, grammar_output: GrammarOutput | None) -> Any:
    return _with_failures(self, sample_tokens.original(self, grammar_output))


def _with_failures(worker: Any, output: Any) -> Any:
    failed = getattr(getattr(worker.model_runner, "lora_manager", None), FAILED, None)
    return noted(output, dict(failed)) if failed else output


def noted(output: Any, failed: dict[int, str]) -> Any:
    """A ModelRunnerOutput, or one to come, that says which adapters were not loaded."""
    if output is None:
        return None
    if isinstance(output, AsyncModelRunnerOutput):
        get_output = output.get_output
        output.get_output = lambda: noted(get_output(), failed)  # type: ignore[method-assign]
        return output
    output = copy(output)  # vLLM has one empty output for all
    setattr(output, FAILED, failed)
    return output


# --- in the engine core ---


@replaces(Scheduler, LOST)
def update_from_output(
    self: Scheduler, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
) -> dict[int, EngineCoreOutputs]:
    failed: dict[int, str] = getattr(model_runner_output, FAILED, {})
    requests = [self.requests.get(number) for number in scheduler_output.num_scheduled_tokens] if failed else []
    lost = {
        request.request_id: f"adapter {request.lora_request.lora_name}: {failed[request.lora_request.lora_int_id]}"
        for request in requests
        if request is not None and request.lora_request and request.lora_request.lora_int_id in failed
    }

    # what was computed without the adapter must not be found by the next request
    for name in lost:
        blocks = {block for group in self.kv_cache_manager.get_block_ids(name) for block in group}
        self.kv_cache_manager.evict_blocks(blocks)
    ended = self.finish_requests(lost, RequestStatus.FINISHED_ERROR) if lost else []

    outputs = update_from_output.original(self, scheduler_output, model_runner_output)
    for request in ended:
        output = EngineCoreOutput(
            request_id=request.request_id,
            new_token_ids=[],
            finish_reason=FinishReason.ERROR,
            stop_reason=lost[request.request_id],
            events=request.take_events(),
            trace_headers=request.trace_headers,
        )
        outputs.setdefault(request.client_index, EngineCoreOutputs()).outputs.append(output)
    return outputs


# --- in the API server: vLLM says `Internal server error` for whatever it is ---


class Reasoned(str):
    """vLLM's finish reason "error", which knows why."""

    reason = ""


@replaces(RequestState, NO_REASON)
def _new_completion_output(
    self: RequestState, token_ids: list[int], finish_reason: FinishReason | None, stop_reason: int | str | None
) -> CompletionOutput:
    output = _new_completion_output.original(self, token_ids, finish_reason, stop_reason)
    if finish_reason == FinishReason.ERROR and isinstance(stop_reason, str):
        output.finish_reason = Reasoned(output.finish_reason)
        output.finish_reason.reason = stop_reason
    return output


@replaces(GenerateBaseServing, NO_REASON)
def _raise_if_error(self: GenerateBaseServing, finish_reason: str | None, request_id: str) -> None:
    if isinstance(finish_reason, Reasoned):
        raise RetryableRequestError(finish_reason.reason)
    _raise_if_error.original(self, finish_reason, request_id)


# --- blocks of the cache ---


@replaces(Scheduler, SPOILED)
def add_request(self: Scheduler, request: Request) -> None:
    """In the engine core: has the scheduler, which may have been made before something of ours was met, note the blocks
    that it hands out. Not for vLLM's second model runner (on a CPU it needs triton-cpu): it clears none unless it was
    made to, and would end the engine."""
    if not self.needs_kv_cache_zeroing and not self.use_v2_model_runner:
        self.needs_kv_cache_zeroing = True
        for manager in self.kv_cache_manager.coordinator.single_type_managers:
            manager._record_new_block_ids = _holds_rows(manager.kv_cache_spec)
    add_request.original(self, request)


def _holds_rows(spec: Any) -> bool:
    """As vLLM's own rule of what is cleared."""
    return isinstance(spec, AttentionSpec) and not isinstance(spec, CircularBufferSpec)


@replaces(CPUModelRunner, SPOILED)
def _zero_block_ids(self: CPUModelRunner, block_ids: list[int]) -> None:
    """In the worker: clears them."""
    layers = self.compilation_config.static_forward_context
    groups = [group for group in self.kv_cache_config.kv_cache_groups if isinstance(group.kv_cache_spec, AttentionSpec)]
    caches = [layers[name].kv_cache for group in groups for name in group.layer_names if name in layers]
    tensors = {cache.data_ptr(): cache for cache in caches if isinstance(cache, torch.Tensor)}
    for cache in tensors.values():  # [blocks, heads, block, 2 * head]; layers of several groups share one
        cache[block_ids] = 0


# --- versions ---


@replaces(LoRARequest, ENDED, "__eq__")
def same_version(self: LoRARequest, value: object) -> bool:
    return isinstance(value, LoRARequest) and _identity(self) == _identity(value)


@replaces(LoRARequest, ENDED, "__hash__")
def version_hash(self: LoRARequest) -> int:
    return hash(_identity(self))


def _identity(request: Any) -> tuple[str, int]:
    return request.lora_name, request.lora_int_id


FAILURES = (
    _apply_adapters, execute_model, sample_tokens, update_from_output, _new_completion_output, _raise_if_error,
)  # fmt: skip
BLOCKS = (add_request, _zero_block_ids)
VERSIONS = (same_version, version_hash)
