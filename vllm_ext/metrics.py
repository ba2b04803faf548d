"""Prometheus counters of this plug-in: value planes, and adapters at a rank, that a worker has in memory.

They show in the server's /metrics if PROMETHEUS_MULTIPROC_DIR is set before vLLM starts, as `sqft serve` does: workers
leave their numbers in that folder, and the API server adds them up.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from vllm_ext.patching import MARK, apply, replaces

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

COUNTERS = {
    "plane_cache_hits": "Requests for a value plane that was in memory",
    "plane_cache_loads": "Value planes that were loaded into memory",
    "plane_cache_evictions": "Value planes that were put out of memory for others",
    "variant_cache_hits": "Batches joined by an adapter that was in memory",
    "variant_cache_loads": "Adapters at a rank that were loaded into memory",
    "variant_cache_evictions": "Adapters that were put out of memory for others",
}
GAUGES = {
    "plane_cache_bytes": "Memory of the value planes, all workers together",
    "variant_cache_bytes": "Memory of the adapters at their ranks, all workers together",
}
PREFIX = "sqft_"


def count(name: str, by: int = 1) -> None:
    """Adds to one of the COUNTERS."""
    metric = _metric(name)
    if metric is not None:
        metric.inc(by)


def gauge(name: str, value: float) -> None:
    """Sets one of the GAUGES."""
    metric = _metric(name)
    if metric is not None:
        metric.set(value)


@cache
def _metric(name: str) -> Any:
    """None where prometheus_client, which vLLM brings, is not there."""
    try:
        from prometheus_client import Counter, Gauge
    except ImportError:
        return None
    if name in COUNTERS:
        return Counter(PREFIX + name, COUNTERS[name])
    return Gauge(PREFIX + name, GAUGES[name], multiprocess_mode="livesum")


def count_joining(worker: Any, joining: set[int]) -> None:
    """joining: the ids of the next batch that were not in the one before. worker: vLLM's WorkerLoRAManager."""
    count("variant_cache_hits", len(joining & worker.list_adapters()))


def patch_loads() -> bool:
    """Counts what LRUCacheWorkerLoRAManager loads and puts out. Idempotent."""
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    if getattr(LRUCacheWorkerLoRAManager.add_adapter, MARK, None) is not None:
        return True

    @replaces(LRUCacheWorkerLoRAManager, "adapters in memory are not counted")
    def add_adapter(self: LRUCacheWorkerLoRAManager, lora_request: LoRARequest) -> bool:
        before = self.list_adapters()
        loaded = add_adapter.original(self, lora_request)
        after = self.list_adapters()
        if before != after:
            count("variant_cache_loads", len(after - before))
            count("variant_cache_evictions", len(before - after))
            gauge("variant_cache_bytes", registered_bytes(self._adapter_manager))
        return loaded

    return apply(add_adapter)


def registered_bytes(manager: Any) -> int:
    """Bytes of the LoRA weights of all adapters that vLLM's LoRAModelManager holds."""
    layers = [layer for lora in manager.list_adapters().values() for layer in lora.loras.values()]
    return sum(_bytes(layer.lora_a) + _bytes(layer.lora_b) for layer in layers)


def _bytes(tensor: Any) -> int:
    """Of a tensor, or of the list of them that a fused layer has (None for a part without one)."""
    if isinstance(tensor, list | tuple):
        return sum(_bytes(part) for part in tensor)
    return 0 if tensor is None else tensor.nbytes
