"""Writing INT4 folders as compressed-tensors `pack-quantized`, which stock transformers and stock vLLM read."""

from __future__ import annotations

import fnmatch
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
from safetensors.torch import save_file
from torch import Tensor

from sqft_plugins.checkpoint.folder import INDEX, SINGLE, ModelFolder
from sqft_plugins.checkpoint.stamp import FOLDER, GridStamp, Stamp, write_sidecar
from sqft_plugins.grid import PER_CHANNEL, QuantizedWeight, pack, pack_zero_point

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.index.json")
SCALE_DTYPES = {torch.bfloat16, torch.float16, torch.float32}


def int4_tensors(module: str, weight: QuantizedWeight, symmetric: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """The stored tensors of one module. The scale is exact in each `dtype` (8 significant bits)."""
    stored = {
        f"{module}.weight_packed": pack(weight.codes),
        f"{module}.weight_scale": weight.scale.to(dtype if dtype in SCALE_DTYPES else torch.float32),
        f"{module}.weight_shape": torch.tensor(weight.codes.shape),
    }
    if not symmetric:
        stored[f"{module}.weight_zero_point"] = pack_zero_point(weight.zero_point)
    return stored


def quantization_config(grid: GridStamp, ignore: Iterable[str]) -> dict:
    """The `quantization_config` of config.json; `ignore` names the linear modules that stay float."""
    per_channel = grid.group_size == PER_CHANNEL
    weights = QuantizationArgs(
        num_bits=4,
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
    return config.model_dump(mode="json")


def write_int4(
    source: ModelFolder,
    target: Path,
    quantize: Callable[[str, Tensor], QuantizedWeight],
    modules: Iterable[str],
    ignore: Iterable[str],
    grid: GridStamp,
    stamp: Stamp,
    packed_masks: Mapping[str, Tensor] | None = None,
) -> Stamp:
    """Copies `source` into the empty folder `target` with `quantize(module, weight)` in place of each module's weight.

    One tensor is in memory at a time beside the shard being written; shards keep the source's names. Returns the stamp
    with the scale hash filled in. packed_masks: what `stamp.mask_hash` was made of; None takes those of `source`.
    """
    wanted = {f"{module}.weight": module for module in modules}
    missing = sorted(set(wanted) - set(source.files))
    if missing:
        source.tensor(missing[0])  # raises, naming it
    scales: dict[str, bytes] = {}  # module → digest of its scales
    weight_map: dict[str, str] = {}
    for file in sorted(set(source.files.values())):
        shard: dict[str, Tensor] = {}
        for name in sorted(n for n, f in source.files.items() if f == file):
            tensor = source.tensor(name)
            if name in wanted:
                quantized = quantize(wanted[name], tensor)
                scales[wanted[name]] = hashlib.sha256(quantized.scale.contiguous().cpu().numpy().tobytes()).digest()
                shard.update(int4_tensors(wanted[name], quantized, grid.symmetric, tensor.dtype))
            else:
                shard[name] = tensor
        save_file(shard, target / file.name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file.name))
    if set(weight_map.values()) != {SINGLE}:
        total = sum((target / name).stat().st_size for name in set(weight_map.values()))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    copy_side_files(source, target)
    config = {key: value for key, value in source.config.items() if key != "sqft"}
    config["quantization_config"] = quantization_config(grid, ignore)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    stamp = stamp.model_copy(update={"grid": grid, "scale_hash": combined_hash(scales)})
    write_sidecar(target, stamp, source.packed_masks if packed_masks is None else packed_masks)
    return stamp


def combined_hash(digests: Mapping[str, bytes]) -> str:
    """SHA-256 over module names and the digests of their scales, whatever order and shards they were written in."""
    combined = hashlib.sha256()
    for module in sorted(digests):
        combined.update(module.encode() + digests[module])
    return combined.hexdigest()


def copy_side_files(source: ModelFolder, target: Path) -> None:
    """Everything beside the weights and config.json: tokenizer, generation config, licence.

    Copies of the model in other weight formats stay behind: they would be of the old weights, and vLLM loads every
    `*.safetensors` it finds.
    """
    for file in source.path.iterdir():
        if file.name in {"config.json", FOLDER} or file.name.startswith(".") or _matches(file.name, WEIGHT_FILES):
            continue
        if file.is_file():
            shutil.copyfile(file, target / file.name)
        else:
            shutil.copytree(
                file, target / file.name, ignore=shutil.ignore_patterns(".*", *WEIGHT_FILES), dirs_exist_ok=True
            )


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
