"""What is reported of a compression and of its layers."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
"""The report of one layer, as JSON.

name; shape: (out, in); sparsity: the fraction that the mask prunes; error: ‖W - W'‖ / ‖W‖; seconds. zeros (of INT4
alone): the fraction of weights that are 0. output_error (where a Hessian is at hand): ‖X(W - W')ᵀ‖ / ‖XWᵀ‖.
"""


@dataclass(kw_only=True)
class Report:
    """What `prune_folder` and `quantize_folder` return; the fields are the keys of the JSON.

    out: the folder. method: the pruner or quantizer. modules, weights: how many layers were compressed, and how many
    weights they have. coverage: what part of the model's weights that is (`Coverage.as_dict`). calibration: where the
    text came from and the shape of its tokens; None for a method without.
    seconds, peak_memory_mib: of the whole process. layers: one `Row` a layer.
    """

    out: str
    method: str
    modules: int
    weights: int
    coverage: dict[str, Any]
    calibration: dict[str, Any] | None
    seconds: float
    peak_memory_mib: int
    layers: list[Row]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, the layers last."""
        fields = asdict(self)
        return {**fields, "layers": fields.pop("layers")}


def summed_up(rows: list[Row], start: float) -> dict[str, Any]:
    """The fields of `Report` that follow from the reports of the layers. start: `time.perf_counter()` at the begin."""
    return {
        "modules": len(rows),
        "weights": weights_of(rows),
        "seconds": time.perf_counter() - start,
        "peak_memory_mib": peak_memory_mib(),
        "layers": rows,
    }


def weights_of(rows: Sequence[Row]) -> int:
    """How many weights the layers have."""
    return sum(row["shape"][0] * row["shape"][1] for row in rows)


def relative_error(weight: Tensor, new: Tensor) -> float:
    """‖W - W'‖ / ‖W‖, Frobenius."""
    norm = float(torch.linalg.vector_norm(weight.float()))
    return float(torch.linalg.vector_norm(new.float() - weight.float())) / (norm or 1.0)


def output_error(weight: Tensor, new: Tensor, hessian: Tensor) -> float:
    """‖X(W - W')ᵀ‖ / ‖XWᵀ‖ from XᵀX [in, in]: how far the outputs on the calibration text have moved."""

    def energy(w: Tensor) -> float:
        return float(((w @ hessian).double() * w).sum().clamp_min(0))

    return float((energy(weight.float() - new.float()) / (energy(weight.float()) or 1.0)) ** 0.5)


def total(rows: Sequence[Row], key: str) -> float:
    """A fraction over all layers: the mean of `key`, weighted by their sizes, each a whole number of weights."""
    sizes = [row["shape"][0] * row["shape"][1] for row in rows]
    count: int = sum(round(row[key] * size) for row, size in zip(rows, sizes, strict=True))
    return count / max(sum(sizes), 1)


def describe(rows: Sequence[Row]) -> str:
    """Some layers in a few words."""
    if not rows:
        return "no layer"
    largest = max(row["error"] for row in rows)
    return f"{total(rows, 'sparsity'):.2%} pruned, error {'up to ' if len(rows) > 1 else ''}{largest:.1%}"


def peak_memory_mib() -> int:
    """The largest resident memory of this process so far; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:  # not Linux
        return _peak_elsewhere()
    # Linux's ru_maxrss begins with that of the process that started this one
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) >> 10


def _peak_elsewhere() -> int:
    """0 on Windows, which has no `resource`."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)
