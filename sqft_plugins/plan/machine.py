"""What this machine has and how fast it is: read, or measured within about a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from sqft_plugins.hardware import memory

GEMM_SECONDS = 0.2
"""How long a rate is measured."""
SAMPLE_IN = 256
SAMPLE_OUTS = (64, 512)
"""The sizes of the weights that a method is timed on."""


def available_memory() -> int:
    """Bytes that a new process may use: what the system calls available, or what is left of the container's limit.
    0 where neither is known."""
    known = memory()
    limits = [] if known is None else [known[1]]

    # version 2 of control groups, then version 1
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            allowed, taken = (Path("/sys/fs/cgroup", name).read_text().strip() for name in (limit, used))
        except OSError:
            continue
        if allowed.isdigit():  # "max": no limit
            limits.append(int(allowed) - int(taken))
    return max(min(limits, default=0), 0)


def gemm_rate(dtype: torch.dtype = torch.float32) -> float:
    """Floating point operations a second of a matrix product [512, 1024] by [1024, 1024], on all threads of torch."""
    a, b = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
    a @ b  # the first product sets up threads and packs
    runs, start = 0, time.perf_counter()
    while time.perf_counter() - start < GEMM_SECONDS:
        a @ b
        runs += 1
    return runs * 2 * 512 * 1024 * 1024 / (time.perf_counter() - start)


def column_costs(run: Callable[[int, int], object]) -> tuple[float, float]:
    """Seconds that `run(out, in)`, a method on one random weight, needs for each column and for each weight: the faster
    of two runs at two sizes gives both."""
    seconds = []
    for rows in SAMPLE_OUTS:
        tries = []
        for _ in range(2):
            start = time.perf_counter()
            run(rows, SAMPLE_IN)
            tries.append(time.perf_counter() - start)
        seconds.append(min(tries))
    small, large = SAMPLE_OUTS
    weight = max(seconds[1] - seconds[0], 0) / (SAMPLE_IN * (large - small))
    return max(seconds[0] / SAMPLE_IN - small * weight, 0), weight
