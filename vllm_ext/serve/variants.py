"""In a worker: counts the adapters at a rank that vLLM holds in memory (--max-cpu-loras of them)."""

from __future__ import annotations

from typing import Any

from vllm_ext.patching import replace_method
from vllm_ext.serve import metrics


def count_joining(worker: Any, joining: set[int]) -> None:
    """joining: the ids of the next batch that were not in the one before. worker: vLLM's WorkerLoRAManager."""
    metrics.count("variant_cache_hits", len(joining & worker.list_adapters()))


def patch_loads() -> bool:
    """Counts what LRUCacheWorkerLoRAManager loads and puts out."""
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    def make(original):
        def add_adapter(self, lora_request):
            before = self.list_adapters()
            loaded = original(self, lora_request)
            after = self.list_adapters()
            if before != after:
                metrics.count("variant_cache_loads", len(after - before))
                metrics.count("variant_cache_evictions", len(before - after))
                metrics.gauge("variant_cache_bytes", registered_bytes(self._adapter_manager))
            return loaded

        return add_adapter

    return replace_method(
        LRUCacheWorkerLoRAManager, "add_adapter", ["self", "lora_request"], make, "adapters in memory are not counted"
    )


def registered_bytes(manager: Any) -> int:
    """Bytes of the LoRA weights of all adapters that vLLM's LoRAModelManager holds."""
    layers = [layer for lora in manager.list_adapters().values() for layer in lora.loras.values()]
    return sum(_bytes(layer.lora_a) + _bytes(layer.lora_b) for layer in layers)


def _bytes(tensor: Any) -> int:
    """Of a tensor, or of the list of them that a fused layer has (None for a part without one)."""
    if isinstance(tensor, list | tuple):
        return sum(_bytes(part) for part in tensor)
    return 0 if tensor is None else tensor.nbytes
