"""What is in a folder: per layer and in total. Reads headers and one tensor at a time.

Works on model folders, float and INT4, and on adapter folders (adapter_config.json + adapter_model.safetensors).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqft_plugins.checkpoint.files import check_output, write_file
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.stamp import read_stamp
from sqft_plugins.errors import CheckpointError, DependencyError, SQFTError
from sqft_plugins.grid import MAX_CODE, QuantizedWeight
from sqft_plugins.measure import module_bytes
from sqft_plugins.progress import track

Row = dict[str, Any]
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICTURES = (".png", ".svg", ".pdf")
GGUF_BLOCK = 32
GGUF_FLOAT = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def inspect_path(path: str | Path) -> dict[str, Any]:
    """The report of a model or adapter folder: `inspect_model` or `inspect_adapter`. Raises CheckpointError."""
    if (Path(path) / ADAPTER_CONFIG).is_file():
        return inspect_adapter(path)
    return inspect_model(ModelFolder(path))


def inspect_model(folder: ModelFolder) -> dict[str, Any]:
    """path, kind "model", model_type, bytes, stamp, grid, total and layers.

    A layer has name, shape, dtype, weights, zeros (fraction exactly 0), pruned (fraction the mask prunes, None without
    a mask), violations (pruned weights that are not 0), not_finite, bits_per_weight (on disk, scales and zero points
    included), gguf (the type it would become); INT4 layers also codes (how many weights have each code) and scale
    (smallest, largest). `total` sums them up.
    """
    modules = layer_names(folder)
    if not modules:
        raise CheckpointError(f"model {folder.path} has no linear layers to look at: give a decoder language model")
    layers = [inspect_layer(folder, module) for module in track(modules, "inspect")]
    return {
        "path": str(folder.path),
        "kind": "model",
        "model_type": folder.config.get("model_type"),
        "bytes": folder.weight_bytes,
        "stamp": folder.stamp.model_dump(exclude_none=True) if folder.stamp else None,
        "grid": folder.grid.model_dump() if folder.grid else None,
        "total": total_of(layers),
        "layers": layers,
    }


def layer_names(folder: ModelFolder) -> list[str]:
    """The modules that are masked or INT4, in model order; where there are none, the linear layers of the blocks."""
    names = {*folder.packed_masks, *folder.quantized_modules}
    if not names:
        from sqft_plugins.compress.find import structure_of_folder  # imports all of transformers

        return list(structure_of_folder(folder.path).shapes)
    return sorted(names, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)])


def inspect_layer(folder: ModelFolder, module: str) -> Row:
    """One layer of the report, see `inspect_model`."""
    quantized = folder.quantized(module) if f"{module}.weight_packed" in folder.files else None
    weight = folder.tensor(f"{module}.weight") if quantized is None else quantized.dequantize()  # [out, in]
    mask = folder.mask(module)
    row: Row = {
        "name": module,
        "shape": list(weight.shape),
        "dtype": "int4" if quantized else str(weight.dtype).removeprefix("torch."),
        "weights": weight.numel(),
        "zeros": _fraction(weight == 0),
        "pruned": None if mask is None else _fraction(~mask),
        "violations": None if mask is None else int(torch.count_nonzero((weight != 0) & ~mask)),
        "not_finite": int(torch.count_nonzero(~torch.isfinite(weight))),
        "bits_per_weight": 8 * module_bytes(folder, module) / weight.numel(),
        "gguf": GGUF_FLOAT.get(weight.dtype, "F32") if quantized is None else gguf_type(quantized),
    }
    if quantized is not None:
        row["codes"] = torch.bincount(quantized.codes.flatten(), minlength=MAX_CODE + 1).tolist()
        row["scale"] = [float(quantized.scale.min()), float(quantized.scale.max())]
    return row


def gguf_type(weight: QuantizedWeight) -> str:
    """The GGUF type that holds the layer exactly: Q4_0 where code - zero_point lies within -8..7 throughout, else
    Q5_0; F32 where a row or a group is no multiple of their block of 32."""
    columns, groups = weight.codes.shape[1], weight.scale.shape[1]
    if (columns // groups) % GGUF_BLOCK:
        return "F32"
    return "Q4_0" if weight.fits_signed() else "Q5_0"


def total_of(layers: Sequence[Row]) -> Row:
    """The layers summed up: layers, weights, zeros, pruned, violations, not_finite, bits_per_weight, dtypes, gguf,
    and for INT4 codes and scale."""
    weights = sum(row["weights"] for row in layers)
    masked = [row for row in layers if row["pruned"] is not None]
    total: Row = {
        "layers": len(layers),
        "weights": weights,
        "zeros": sum(row["zeros"] * row["weights"] for row in layers) / weights,
        "pruned": sum(row["pruned"] * row["weights"] for row in masked) / sum(row["weights"] for row in masked)
        if masked
        else None,
        "violations": sum(row["violations"] for row in masked) if masked else None,
        "not_finite": sum(row["not_finite"] for row in layers),
        "bits_per_weight": sum(row["bits_per_weight"] * row["weights"] for row in layers) / weights,
        "dtypes": _count(row["dtype"] for row in layers),
        "gguf": _count(row["gguf"] for row in layers),
    }
    quantized = [row for row in layers if "codes" in row]
    if quantized:
        total["codes"] = [sum(counts) for counts in zip(*(row["codes"] for row in quantized), strict=True)]
        total["scale"] = [min(row["scale"][0] for row in quantized), max(row["scale"][1] for row in quantized)]
    return total


def inspect_adapter(path: str | Path) -> dict[str, Any]:
    """path, kind "adapter", type, base, bytes, alpha, stamp (where it carries one), mask_hash (of the base it fits),
    rank_choices, sparse, quantization_aware, total (modules, parameters, ranks: rank → how many modules) and layers:
    name, rank, in, out, dtype, parameters. Raises CheckpointError."""
    folder = Path(path)
    config = _json(folder / ADAPTER_CONFIG)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise CheckpointError(f"adapter {path} has no {ADAPTER_WEIGHTS}: save it with save_pretrained")
    stamp = read_stamp(folder)
    layers = [_adapter_layer(name, A, B) for name, A, B in _lora_pairs(file)]
    return {
        "path": str(path),
        "kind": "adapter",
        "type": config.get("peft_type"),
        "base": config.get("base_model_name_or_path"),
        "alpha": config.get("lora_alpha"),
        "bytes": file.stat().st_size,
        "stamp": stamp.model_dump(exclude_none=True) if stamp else config.get("sqft"),
        "mask_hash": config.get("mask_hash"),
        "rank_choices": config.get("rank_choices"),
        "sparse": config.get("sparse"),
        "quantization_aware": config.get("quantization_aware"),
        "total": {
            "modules": len(layers),
            "parameters": sum(row["parameters"] for row in layers),
            "ranks": _count(str(row["rank"]) for row in layers),
        },
        "layers": layers,
    }


def plot_sparsity(report: Mapping[str, Any], file: str | Path, overwrite: bool = False) -> None:
    """A heat map of the fraction of zeros, blocks × kind of layer, written to `file` (.png, .svg or .pdf).

    Raises SQFTError for an adapter, an unknown format or a file that exists, DependencyError without matplotlib.
    """
    check_plot(file, overwrite)
    if report["kind"] != "model":
        raise SQFTError(f"--plot: {report['path']} is an adapter, which has no zeros to show: give a model folder")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("--plot needs matplotlib: pip install 'sqft-plugins[eval]'") from error
    cells = {_block_and_kind(row["name"]): row["zeros"] for row in report["layers"]}
    blocks = sorted({block for block, _ in cells})
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    values = [[cells.get((block, kind), float("nan")) for block in blocks] for kind in kinds]
    figure = Figure(figsize=(3 + 0.3 * len(blocks), 1.6 + 0.35 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(kinds)), kinds)
    every = max(1, len(blocks) // 12)
    axes.set_xticks(range(0, len(blocks), every), [str(block) for block in blocks[::every]])
    axes.set_xlabel("block")
    axes.set_title(f"{Path(report['path']).name}: {report['total']['zeros']:.1%} zeros")
    figure.colorbar(image, ax=axes, label="fraction of zeros")
    with write_file(file, overwrite, "--plot") as target:
        figure.savefig(target, dpi=120, format=Path(file).suffix.removeprefix("."))


def check_plot(file: str | Path, overwrite: bool = False) -> None:
    """Raises SQFTError, before any work, for a picture that exists or has an unknown format."""
    if Path(file).suffix not in PICTURES:
        raise SQFTError(f"--plot {file} has no known format: end it with {', '.join(PICTURES)}")
    check_output(file, overwrite, "--plot")


def _lora_pairs(file: Path) -> Iterator[tuple[str, Tensor, Tensor]]:
    try:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():  # noqa: SIM118 (not a mapping)
                other = name.replace(".lora_A.", ".lora_B.")
                if other != name:
                    module = name.partition(".lora_A.")[0].removeprefix("base_model.model.")
                    yield module, handle.get_tensor(name), handle.get_tensor(other)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is damaged or cut off ({error}): copy the adapter again") from error


def _adapter_layer(name: str, A: Tensor, B: Tensor) -> Row:
    return {
        "name": name,
        "rank": A.shape[0],
        "in": A.shape[1],
        "out": B.shape[0],
        "dtype": str(A.dtype).removeprefix("torch."),
        "parameters": A.numel() + B.numel(),
    }


def _json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} is not JSON ({error}): copy the folder again") from error


def _block_and_kind(module: str) -> tuple[int, str]:
    match = re.search(r"\.(\d+)\.(.+)$", module)
    return (int(match[1]), match[2]) if match else (0, module)


def _fraction(mask: Tensor) -> float:
    return int(torch.count_nonzero(mask)) / mask.numel()


def _count(names: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts
