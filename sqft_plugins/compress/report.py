"""What to tell of compressed layers."""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
"""The report of one layer: name, shape (out, in), sparsity, error, seconds; output_error where a Hessian is at hand."""


def relative_error(weight: Tensor, new: Tensor) -> float:
    """‖W - W'‖ / ‖W‖, Frobenius."""
    norm = float(torch.linalg.vector_norm(weight.float()))
    return float(torch.linalg.vector_norm(new.float() - weight.float())) / (norm or 1.0)


def output_error(weight: Tensor, new: Tensor, hessian: Tensor) -> float:
    """‖X(W - W')ᵀ‖ / ‖XWᵀ‖ from XᵀX [in, in]: how far the outputs on the calibration text have moved."""

    def energy(w: Tensor) -> float:
        return float(((w @ hessian).double() * w).sum().clamp_min(0))

    return (energy(weight.float() - new.float()) / (energy(weight.float()) or 1.0)) ** 0.5


def total(rows: Sequence[Row], key: str) -> float:
    """A fraction over all layers: the mean of `key`, weighted by their sizes, each a whole number of weights."""
    sizes = [row["shape"][0] * row["shape"][1] for row in rows]
    return sum(round(row[key] * size) for row, size in zip(rows, sizes, strict=True)) / max(sum(sizes), 1)


def describe(rows: Sequence[Row]) -> str:
    """Some layers in a few words."""
    if not rows:
        return "no layer"
    largest = max(row["error"] for row in rows)
    return f"{total(rows, 'sparsity'):.2%} pruned, error {'up to ' if len(rows) > 1 else ''}{largest:.1%}"


def peak_memory_mib() -> int:
    """The largest resident memory of this process so far."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kib >> (20 if sys.platform == "darwin" else 10)
    # Linux's ru_maxrss begins with that of the process that started this one
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) >> 10
