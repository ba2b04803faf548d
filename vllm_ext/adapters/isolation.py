"""No request sees what another one left, and no version of an adapter is taken for another.

Blocks of the cache. vLLM hands them out as they are (0.32: `KVCacheConfig.needs_kv_cache_zeroing` is false for plain
attention). Its CPU attention multiplies what lies behind the end of a sequence by 0, and 0 times NaN or infinity is
NaN: one request whose numbers overflowed, such as those of an adapter that was trained too hard, spoils all who get
its blocks next. So a block is cleared when it is handed out, as vLLM itself does for Mamba.

Versions. vLLM 0.32 collects the LoRARequests of a batch in a set and compares them by name: of an adapter that was
replaced while requests ran, one version was left out, and the engine ended with a KeyError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import AttentionSpec, CircularBufferSpec
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_ext.patching import apply, replaces

if TYPE_CHECKING:
    from vllm.v1.request import Request

SPOILED = "a NaN may spoil later answers"
ENDED = "an adapter that is replaced while requests run ends the engine"


def patch_isolation() -> bool:
    """Idempotent."""
    return apply(same_version, version_hash) and (not current_platform.is_cpu() or apply(add_request, _zero_block_ids))


@replaces(Scheduler, SPOILED)
def add_request(self: Scheduler, request: Request) -> None:
    """In the engine core: has the scheduler, which may have been made before something of ours was met, note the blocks
    that it hands out."""
    if not self.needs_kv_cache_zeroing:
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


@replaces(LoRARequest, ENDED, "__eq__")
def same_version(self: LoRARequest, value: object) -> bool:
    return isinstance(value, LoRARequest) and _identity(self) == _identity(value)


@replaces(LoRARequest, ENDED, "__hash__")
def version_hash(self: LoRARequest) -> int:
    return hash(_identity(self))


def _identity(request: Any) -> tuple[str, int]:
    return request.lora_name, request.lora_int_id
