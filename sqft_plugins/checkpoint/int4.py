"""Weights of 2 to 8 bits as compressed-tensors `pack-quantized`, which stock transformers and stock vLLM read.

The functions are named after INT4, the width that everything runs. Other widths are read back by this project and by
compressed-tensors (3, 5 and 6 bits since 0.20), and run by vLLM's GPU kernels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.shards import TensorSpec
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.errors import GridError
from sqft_plugins.grid import PER_CHANNEL, QuantizedWeight, group_count, pack, pack_zero_point, packed_words

SCALE_DTYPES = {torch.bfloat16, torch.float16, torch.float32}


def int4_tensors(module: str, weight: QuantizedWeight, grid: GridStamp, dtype: torch.dtype) -> dict[str, Tensor]:
    """The stored tensors of one module of a model in `dtype`. Our scales, of 8 significant bits, are exact in each;
    raises GridError for a scale that is not exact (AutoGPTQ's have 11 bits, which bf16 does not hold)."""
    scale = weight.scale.to(scale_dtype(dtype))
    if not torch.equal(scale.to(torch.float32), weight.scale):
        raise GridError(f"the scales of {module} are not exact in {scale.dtype}: save the model in float16")
    stored = {
        f"{module}.weight_packed": pack(weight.codes, grid.bits),
        f"{module}.weight_scale": scale,
        f"{module}.weight_shape": torch.tensor(weight.codes.shape),
    }
    if not grid.symmetric:
        stored[f"{module}.weight_zero_point"] = pack_zero_point(weight.zero_point, grid.bits)
    return stored


def int4_specs(module: str, shape: tuple[int, ...], grid: GridStamp, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """What `int4_tensors` stores of a module of `shape` (out, in). Raises GridError where the group does not divide."""
    rows, columns = shape
    groups = group_count(columns, grid.group_size, module)
    specs = {
        f"{module}.weight_packed": TensorSpec(torch.int32, (rows, packed_words(columns, grid.bits))),
        f"{module}.weight_scale": TensorSpec(scale_dtype(dtype), (rows, groups)),
        f"{module}.weight_shape": TensorSpec(torch.int64, (2,)),
    }
    if not grid.symmetric:
        specs[f"{module}.weight_zero_point"] = TensorSpec(torch.int32, (packed_words(rows, grid.bits), groups))
    return specs


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the scales in a model of `dtype`."""
    return dtype if dtype in SCALE_DTYPES else torch.float32


def digest_of(*tensors: Tensor) -> str:
    """SHA-256 of the bytes of tensors, one after the other, such as the scales of one module."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def quantization_config(grid: GridStamp, ignore: Iterable[str]) -> dict[str, Any]:
    """The `quantization_config` of config.json; `ignore` names the linear modules that stay float."""
    # brings transformers
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    per_channel = grid.group_size == PER_CHANNEL
    weights = QuantizationArgs(
        num_bits=grid.bits,
        type="int",
        symmetric=grid.symmetric,
        strategy="channel" if per_channel else "group",
        group_size=None if per_channel else grid.group_size,
    )

    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format="pack-quantized",
        quantization_status="compressed",
        ignore=sorted(ignore),
    )
    fields: dict[str, Any] = config.model_dump(mode="json")
    return fields


def int4_config(config: Mapping[str, Any], grid: GridStamp, ignore: Iterable[str]) -> dict[str, Any]:
    """The config.json of an INT4 model made from a float one with `config`."""
    kept = {key: value for key, value in config.items() if key != "sqft"}
    return {**kept, "quantization_config": quantization_config(grid, ignore)}


def combined_hash(digests: Mapping[str, str]) -> str:
    """SHA-256 over module names and the digests of their scales or codes, whatever order they were made in."""
    combined = hashlib.sha256()
    for module in sorted(digests):
        combined.update(module.encode() + bytes.fromhex(digests[module]))
    return combined.hexdigest()
