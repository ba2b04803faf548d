"""Model folders, float and INT4 in any format that `ModelFolder` reads."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.source import WeightSource
from sqft_plugins.compress.coverage import coverage_of, linear_sizes
from sqft_plugins.compress.fused import fused_weights
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.inspect.report import Row, total_of, zeros_of
from sqft_plugins.mask import Pattern, lost_zeros, mask_hash, nonzero_mask, sparsity_of
from sqft_plugins.pattern import PATTERNS
from sqft_plugins.progress import track
from sqft_plugins.structure import meta_model, structure_of_folder

GGUF_BLOCK = 32
GGUF_STEPS = {"Q4_0": 4, "Q5_0": 5, "Q8_0": 8}
"""GGUF's types for integer weights → the bits of the signed steps that they hold."""
GGUF_FLOAT = {"F16": torch.float16, "BF16": torch.bfloat16}


def inspect_model(folder: ModelFolder, patterns: Sequence[Pattern] = PATTERNS) -> dict[str, Any]:
    """The report of a model folder, as JSON: path, kind ("model"), model_type, bytes, stamp, grid, coverage
    (`Coverage.as_dict`, None for a model that transformers does not know), total and layers;
    mask_is_the_stamps, whether the stored masks have the stamp's hash (None without a stamp). `total` sums up the
    layers, and a layer has

        name, shape [out, in], dtype, weights
        zeros               the fraction that is exactly 0
        patterns            see `zeros_of`
        pruned              the fraction that the mask prunes, None without a mask
        violations          how many pruned weights are not 0
        kept_zero           how many weights the mask keeps that are 0, as INT4 rounding makes them
        not_finite          how many
        bits_per_weight     on disk, with scales and zero points
        gguf, gguf_exact    the type that it would become, or none
        codes, scale        INT4 alone: how many weights have each code; the smallest and the largest scale

    Raises CheckpointError for a model without linear layers.
    """
    modules = layer_names(folder)
    if not modules:
        raise CheckpointError(f"model {folder.path} has no linear layers to look at: give a decoder language model")

    layers = [inspect_layer(folder, module, patterns) for module in track(modules, "inspect")]
    stamp = folder.stamp
    return {
        "path": str(folder.path),
        "kind": "model",
        "model_type": folder.config.get("model_type"),
        "bytes": folder.weight_bytes,
        "stamp": stamp.model_dump(exclude_none=True) if stamp else None,
        "mask_is_the_stamps": mask_hash(folder.masks) == stamp.mask_hash if stamp else None,
        "grid": folder.grid.model_dump() if folder.grid else None,
        "coverage": coverage(folder, modules),
        "total": total_of(layers),
        "layers": layers,
    }


def coverage(folder: ModelFolder, modules: Sequence[str]) -> dict[str, Any] | None:
    """What part of the model the layers are; None for a model that transformers does not know."""
    try:
        model = meta_model(folder.path)
    except CheckpointError:
        return None
    # experts, each a layer in the files, are parts of fused parameters in the model
    known = linear_sizes(model)
    fused = {name: known[name] for name in fused_weights(model, anywhere=True)}
    experts = sum(math.prod(folder.weight_shape(module)) for module in modules if module not in known)
    share = min(experts / max(sum(fused.values()), 1), 1.0)
    return coverage_of(model, modules, {name: round(size * share) for name, size in fused.items()}).as_dict()


def layer_names(folder: ModelFolder) -> list[str]:
    """The modules that are masked or INT4, in model order; where there are none, the linear layers of the blocks."""
    names = {*folder.masks, *folder.int4.modules}
    if not names:
        return list(structure_of_folder(folder.path).shapes)
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def inspect_layer(source: WeightSource, module: str, patterns: Sequence[Pattern] = PATTERNS) -> Row:
    """One layer of the report, see `inspect_model`."""
    quantized = source.quantized(module) if source.is_quantized(module) else None
    weight = source.weight(module) if quantized is None else quantized.dequantize()  # [out, in]
    mask = source.mask(module)

    row: Row = {
        "name": module,
        "shape": list(weight.shape),
        "dtype": quantized.grid.kind.name if quantized else str(weight.dtype).removeprefix("torch."),
        **zeros_of(weight, patterns),
        "pruned": None if mask is None else sparsity_of(mask),
        "violations": None if mask is None else lost_zeros(weight, mask),
        "kept_zero": None if mask is None else int(torch.count_nonzero(mask & ~nonzero_mask(weight))),
        "bits_per_weight": 8 * source.module_bytes(module) / weight.numel(),
        "gguf": float_type(weight) if quantized is None else gguf_type(quantized),
        "gguf_exact": quantized is None or bool((quantized.scale == quantized.scale.to(torch.float16)).all()),
    }

    if quantized is not None:
        row["codes"] = torch.bincount(quantized.codes.flatten(), minlength=quantized.grid.kind.max_code + 1).tolist()
        row["scale"] = [float(quantized.scale.min()), float(quantized.scale.max())]
    return row


def gguf_type(weight: QuantizedWeight) -> str:
    """The GGUF type that holds the layer exactly: Q4_0 where code - zero_point lies within -8..7 throughout, Q5_0 where
    it lies within -16..15, Q8_0 within -128..127; else, or where a row or a group is no multiple of their block of 32,
    "none": `sqft export gguf` refuses it."""
    if weight.group_size % GGUF_BLOCK:
        return "none"
    return next((name for name, bits in GGUF_STEPS.items() if weight.fits_signed(bits)), "none")


def float_type(weight: Tensor) -> str:
    """The narrowest of GGUF's F16, BF16 and F32 that holds every weight exactly (F16 where both do)."""
    for name, dtype in GGUF_FLOAT.items():
        if weight.dtype == dtype or torch.equal(weight.to(dtype).to(torch.float32), weight.to(torch.float32)):
            return name
    return "F32"
