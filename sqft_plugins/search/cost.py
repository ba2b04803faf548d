"""What a configuration costs: the parameters of its sub-adapter, or the time that they take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.errors import SQFTError
from sqft_plugins.search.space import Space

REPEATS, CALLS = 15, 20


Cost = Callable[[Mapping[str, int]], float]
"""What module → rank costs."""
Shapes = Mapping[str, tuple[int, int]]
"""Module → (in, out)."""


def parameters(shapes: Shapes) -> Cost:
    """Numbers in A and B of the sub-adapter, rank · (in + out) summed over the modules. Unmerged and dense, these are
    also its multiply-adds per token."""
    return lambda ranks: sum(rank * sum(shapes[module]) for module, rank in ranks.items())


def latency(shapes: Shapes, table: Mapping[str, float]) -> Cost:
    """Microseconds a token that A and B add to one decoding step on this machine, unmerged, summed over the modules.
    table: of `measure_latency`."""
    return lambda ranks: sum(table[_key(*shapes[module], rank)] for module, rank in ranks.items())


def measure_latency(shapes: Shapes, space: Space, dtype: torch.dtype) -> dict[str, float]:
    """ "in x out @ rank" → microseconds of A and B of that shape, alone: the median of 15 runs of 20 calls."""
    return {
        _key(columns, rows, rank): _microseconds(columns, rows, rank, dtype)
        for columns, rows in sorted(set(shapes.values()))
        for rank in space.ordered
    }


def adapter_shapes(adapter: Path) -> dict[str, tuple[int, int]]:
    folder = AdapterFolder(adapter)
    return {module: (folder.pairs[module].inputs, folder.pairs[module].outputs) for module in folder.linears}


def check_latency(adapter: Path) -> None:
    """Raises SQFTError for an adapter whose rank changes no runtime."""
    if AdapterFolder(adapter).kind != "dense":
        raise SQFTError(
            f"--against latency: {adapter} is masked, it is merged before it is served and then as fast at every rank: "
            "use --against parameters"
        )


def _key(columns: int, rows: int, rank: int) -> str:
    return f"{columns}x{rows}@{rank}"


@torch.no_grad()
def _microseconds(columns: int, rows: int, rank: int, dtype: torch.dtype) -> float:
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    x, A, B = (
        torch.zeros(shape, dtype=dtype, device=device) for shape in ((1, columns), (rank, columns), (rows, rank))
    )
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        for _ in range(CALLS):
            F.linear(F.linear(x, A), B)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start) / CALLS)
    return 1e6 * statistics.median(seconds[1:])  # the first run warms up
