"""Prometheus counters of this plug-in: value planes, and adapters at a rank, that a worker has in memory.

They show in the server's /metrics if PROMETHEUS_MULTIPROC_DIR is set before vLLM starts, as `sqft serve` does: workers
leave their numbers in that folder, and the API server adds them up.
"""

from __future__ import annotations

from functools import cache
from typing import Any

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
