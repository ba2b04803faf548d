"""No request reads what another one left in the cache.

vLLM hands out the cache's blocks as they are (0.32: `KVCacheConfig.needs_kv_cache_zeroing` is false for plain
attention). Its CPU attention multiplies what lies behind the end of a sequence by 0, and 0 times NaN or infinity is
NaN: one request whose numbers overflowed, such as those of an adapter that was trained too hard, spoils all who get
its blocks next. So a block is cleared when it is handed out, as vLLM itself does for Mamba.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from vllm_ext.patching import logger, replace_method


def patch_blocks() -> bool:
    """In the scheduler, which tells the new blocks, and the worker, which clears them. Idempotent."""
    if not current_platform.is_cpu():
        return False
    asked = KVCacheConfig.__dict__.get("needs_kv_cache_zeroing")
    if not isinstance(asked, property):
        logger.warning("sqft: this vLLM does not clear blocks of its cache: a NaN may spoil later answers")
        return False

    def make(original):
        def _zero_block_ids(self, block_ids):
            layers = self.compilation_config.static_forward_context
            groups = [group for group in self.kv_cache_config.kv_cache_groups if _has_rows(group)]
            caches = [layers[name].kv_cache for group in groups for name in group.layer_names if name in layers]
            tensors = {cache.data_ptr(): cache for cache in caches if isinstance(cache, torch.Tensor)}
            for cache in tensors.values():  # [blocks, heads, block, 2 * head]; layers of several groups share one
                cache[block_ids] = 0

        return _zero_block_ids

    if not replace_method(
        CPUModelRunner, "_zero_block_ids", ["self", "block_ids"], make, "a NaN may spoil later answers"
    ):
        return False
    KVCacheConfig.needs_kv_cache_zeroing = property(lambda self: True)  # type: ignore[method-assign, assignment]
    return True


def _has_rows(group: Any) -> bool:
    return isinstance(group.kv_cache_spec, AttentionSpec)
