"""What each export of the planned model would be."""

from __future__ import annotations

from typing import Any

from sqft_plugins.compress.float_model import FloatModel
from sqft_plugins.errors import SQFTError
from sqft_plugins.plan.config import has_weights
from sqft_plugins.plan.settings import PlanSettings
from sqft_plugins.plugins import get_manager

VLLM_MULTIPLE = 32
"""Stock vLLM's INT4 kernels for CPUs take layers whose `in` and `out` are multiples of this (vLLM 0.32)."""


def exports(source: FloatModel, settings: PlanSettings) -> list[dict[str, Any]]:
    """One row for each format and each of the float and the INT4 model: format, of, possible, reason (why not), types
    (name → number of tensors), exact (whether every weight is held as it is), bytes (None where it is the folder)."""
    rows = [vllm_row(source)]
    if not has_weights(source):  # an exporter reads headers and the tokenizer
        return rows

    for name, exporter in sorted(get_manager().collect("sqft_exporters").items()):
        estimate = getattr(exporter, "estimate", None)
        if estimate is None:  # a plug-in need not offer it
            continue
        for of, modules in (("INT4", list(source.modules)), ("merged", [])):
            row: dict[str, Any] = {"format": name, "of": of}
            try:
                estimated = estimate(source.path, modules, settings.stamp)
                rows.append({**row, "possible": True, "reason": "", **estimated})
            except SQFTError as error:
                rows.append({**row, "possible": False, "reason": str(error), "types": {}, "exact": None, "bytes": None})
    return rows


def vllm_row(source: FloatModel) -> dict[str, Any]:
    """Stock vLLM on the INT4 folder, which needs no export."""
    row = {"format": "vllm", "of": "INT4", "types": {"pack-quantized": len(source.modules)}, "exact": True}
    for module, shape in source.modules.items():
        if any(side % VLLM_MULTIPLE for side in shape):
            reason = f"{module} is {shape}, vLLM's INT4 needs multiples of {VLLM_MULTIPLE}: exclude the layer"
            return {**row, "possible": False, "reason": reason, "exact": None, "bytes": None}
    return {**row, "possible": True, "reason": "", "bytes": None}
