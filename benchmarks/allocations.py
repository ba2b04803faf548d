"""Bytes that a forward and backward pass takes, from the profiler's record of every allocation."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write two lines to stderr at each use


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes allocated at once while `call` runs, above what there was before."""
    return max(accumulate(_allocations(call)), default=0)


def kept_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes still allocated after `forward` beside its result: what waits for the backward pass."""
    kept = []
    grown = sum(_allocations(lambda: kept.append(forward())))
    return grown - kept[0].untyped_storage().nbytes()


def saved_elements(forward: Callable[[], Tensor]) -> int:
    """Elements of the largest tensor saved for the backward pass that is neither a leaf nor a view of one."""
    sizes = [0]

    def pack(tensor: Tensor) -> Tensor:
        origin = tensor if tensor._base is None else tensor._base
        if not origin.is_leaf or origin.grad_fn is not None:
            sizes.append(origin.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return max(sizes)


def _allocations(call: Callable[[], object]) -> list[int]:
    """Bytes of every allocation (positive) and release (negative) during `call`, in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
