"""Both ways between an INT4 folder and its compact form (formats/compact.py), bit for bit, one tensor at a time."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.compact import compact_pack, compact_specs, nibble_bytes, pack_nibbles
from sqft_plugins.checkpoint.files import check_output, write_folder
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.formats import PackQuantized
from sqft_plugins.checkpoint.formats.compact import BITMASK, COMPACT, COMPACT_VERSION, METHOD, ORIGINAL, PREFIX, Compact
from sqft_plugins.checkpoint.int4 import int4_tensors
from sqft_plugins.checkpoint.shards import BY_NAME, ShardFile, TensorSpec
from sqft_plugins.checkpoint.stamp import FOLDER, MASK_FILE
from sqft_plugins.checkpoint.tensors import INDEX
from sqft_plugins.checkpoint.writer import FolderWriter, copy_side_files, write_config
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.grid import require_int4
from sqft_plugins.mask import mask_hash
from sqft_plugins.progress import track

HEADER = ".header"
"""Ends the name of a file's own header under `ORIGINAL`."""


def compact_folder(model: str | Path, out: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Writes the compact form of an INT4 folder that has a mask.

    Returns out, modules, weights, sparsity (of the masks), bits_per_weight and bits_per_weight_before (codes, scales,
    zero points and mask of those modules), bytes and bytes_before (weight and mask files), seconds.
    Raises SQFTError for a folder that is not `pack-quantized` or has no mask, MismatchError for a mask that is not the
    stamp's or that prunes a weight that is not zero.
    """
    start = time.perf_counter()

    # everything that can be refused
    check_output(out, overwrite)
    source = ModelFolder(model)
    if source.storage != PackQuantized.name:
        raise SQFTError(f"model {model} is {source.storage}, not pack-quantized INT4: make it one with `sqft quantize`")
    require_int4(source.int4.grid.kind, f"model {model}", "the compact form")
    modules = [module for module in source.int4.modules if module in source.masks]
    if not modules or source.stamp is None:
        raise SQFTError(f"model {model} has no masks of INT4 weights: prune it first, or ship it as it is")
    if mask_hash(source.masks) != source.stamp.mask_hash:
        raise MismatchError(f"{model}/{FOLDER}/{MASK_FILE} has not the mask_hash of the stamp: copy the model again")

    # work
    kept = {module: source.kept(module).sum(1) for module in modules}  # int64 [out]
    with write_folder(out, overwrite) as target:
        writer = _compact_writer(source, target, kept)
        writer.copy_rest()
        for module in track(modules, "compact"):
            for name, tensor in compact_tensors(source, module).items():
                writer.write(name, tensor)
        for module in source.masks.keys() - kept.keys():
            writer.write(f"{module}{BITMASK}", source.masks[module])
            writer.write(source.parts(module)[0], source.tensor(source.parts(module)[0]))
        _compact_side(source, target)

    # report
    weights = sum(math.prod(source.int4.shape(module)) for module in modules)
    mask_bytes = sum(source.masks[module].numel() for module in modules)
    done = ModelFolder(out)
    return {
        "out": str(out),
        "modules": len(modules),
        "weights": weights,
        "sparsity": 1 - sum(int(rows.sum()) for rows in kept.values()) / weights,
        "bits_per_weight": 8 * sum(map(done.module_bytes, modules)) / weights,
        "bits_per_weight_before": 8 * (sum(map(source.module_bytes, modules)) + mask_bytes) / weights,
        "bytes": done.weight_bytes,
        "bytes_before": source.weight_bytes + (source.path / FOLDER / MASK_FILE).stat().st_size,
        "seconds": time.perf_counter() - start,
    }


def expand_folder(model: str | Path, out: str | Path, overwrite: bool = False) -> dict[str, Any]:
    """Restores the INT4 folder that a compact one was made from, every file byte for byte.

    Returns out, modules, bytes (weight and mask files), seconds. Raises SQFTError for a folder that is not compact,
    CheckpointError for a damaged folder.
    """
    start = time.perf_counter()

    # everything that can be refused
    check_output(out, overwrite)
    source = ModelFolder(model)
    if source.storage != Compact.name:
        raise SQFTError(f"model {model} is not in the compact form: give what `sqft compact` wrote")
    original = source.path / ORIGINAL
    headers = {file.name.removesuffix(HEADER): file for file in sorted(original.glob(f"*{HEADER}"))}
    if not headers or MASK_FILE not in headers or not (original / "config.json").is_file():
        raise CheckpointError(f"{original} lacks headers or config.json: copy the whole compact folder again")

    # work
    with write_folder(out, overwrite) as target:
        copy_side_files(source, target)
        shutil.copytree(source.path / FOLDER, target / FOLDER, ignore=shutil.ignore_patterns(original.name))
        files = {
            name: Restored(target / (f"{FOLDER}/{name}" if name == MASK_FILE else name), file)
            for name, file in headers.items()
        }
        masks = files.pop(MASK_FILE)
        where = {name: file for file in files.values() for name in file.specs}

        missing = set(where)
        for name, tensor in track(int4_stream(source), "expand", len(where)):
            if name not in where:
                raise CheckpointError(f"{name} is in no header of {original}: copy the whole compact folder again")
            where[name].write(name, tensor)
            missing.discard(name)
        for name in sorted(missing):
            source.file(name)  # raises CheckpointError
        for module in masks.specs:
            masks.write(module, source.masks[module])
        for file in original.iterdir():
            if not file.name.endswith(HEADER):
                shutil.copyfile(file, target / file.name)

    # report
    done = ModelFolder(out)
    return {
        "out": str(out),
        "modules": len(source.masks.keys() & set(source.int4.modules)),
        "bytes": done.weight_bytes + masks.size,
        "seconds": time.perf_counter() - start,
    }


def int4_stream(source: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the INT4 folder that a compact one was made from, one in memory at a time."""
    compact = [module for module in source.int4.modules if module in source.masks]
    for module in compact:
        dtype = source.int4.scale_spec(module).dtype
        yield from int4_tensors(module, source.quantized(module), source.int4.grid, dtype).items()

    done = {part for module in compact for part in source.parts(module)}
    for name in source.tensor_names:
        if name not in done:
            yield name, source.tensor(name)


def masked_specs(source: ModelFolder, module: str, kept: Tensor) -> dict[str, TensorSpec]:
    """What a masked INT4 module becomes; kept: int64 [out], how many weights of each row the mask keeps."""
    value_bytes = int(nibble_bytes(kept).sum())
    shape, scales = source.int4.shape(module), source.int4.scale_spec(module)
    return compact_specs(module, shape, value_bytes, scales, source.int4.grid.symmetric)


def compact_tensors(source: ModelFolder, module: str) -> dict[str, Tensor]:
    """The tensors of `masked_specs`. Raises MismatchError where the mask prunes a weight that is not zero."""
    grid, weight, mask = source.int4.grid, source.quantized(module), source.kept(module)
    broken = weight.lost_zeros(mask)
    if broken:
        raise MismatchError(
            f"model {source.path}: {broken} weights of {module} are nonzero although its mask prunes them: "
            f"merge a masked adapter, or ship the folder as it is"
        )

    # what `expand_folder` will make of it
    again = int4_tensors(module, weight, grid, source.int4.scale_spec(module).dtype)
    for name, tensor in again.items():
        if not torch.equal(tensor, source.tensor(name)):
            raise CheckpointError(f"{name} of {source.files[name]} could not be restored: quantize the model again")

    bitmask, values, row_offsets = compact_pack(weight.codes, mask)
    tensors = {
        "bitmask": bitmask,
        "values": values,
        "row_offsets": row_offsets,
        "scales": source.tensor(f"{module}.weight_scale"),
        "shape": source.tensor(f"{module}.weight_shape"),
    }
    if not grid.symmetric:
        zeros = weight.zero_point
        tensors["zeros"] = pack_nibbles(torch.nn.functional.pad(zeros, (0, zeros.shape[1] % 2)))
    return {f"{module}.weight.{part}": tensor for part, tensor in tensors.items()}


def _compact_writer(source: ModelFolder, target: Path, kept: Mapping[str, Tensor]) -> FolderWriter:
    """The shards of `source`: an INT4 module of `kept` in the compact form, a masked float module with its mask beside
    it."""
    changed: dict[str, dict[str, TensorSpec]] = {}
    for module in sorted({*kept, *source.masks}):
        first, *others = source.parts(module)
        if module in kept:
            changed[first] = masked_specs(source, module, kept[module])
            changed |= {name: {} for name in others}
        else:
            mask = TensorSpec.of(source.masks[module])
            changed[first] = {first: source.spec(first), f"{module}{BITMASK}": mask}
    return FolderWriter(source, target, changed, prefix=PREFIX)


def _compact_side(source: ModelFolder, target: Path) -> None:
    """All but the weights: what INT4 has in their place goes where `expand_folder` finds it."""
    copy_side_files(source, target)
    shutil.copytree(source.path / FOLDER, target / FOLDER, ignore=shutil.ignore_patterns(MASK_FILE))

    original = target / ORIGINAL
    original.mkdir()
    for name in ("config.json", INDEX):
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, original / name)
    for file in (*set(source.files.values()), source.path / FOLDER / MASK_FILE):
        (original / f"{file.name}{HEADER}").write_bytes(_header(file))

    config = source.config["quantization_config"]
    quantization = {
        "quant_method": METHOD,
        "format": COMPACT,
        "version": COMPACT_VERSION,
        **source.int4.grid.model_dump(),
        "ignore": config.get("ignore", []),
        FOLDER: config.get(FOLDER),
    }
    write_config(target, {**source.config, "quantization_config": quantization})


def _header(file: Path) -> bytes:
    with open(file, "rb") as handle:
        length = handle.read(8)
        return length + handle.read(int.from_bytes(length, "little"))


class Restored(ShardFile):
    """A safetensors file with a given header, byte for byte, to be filled."""

    def __init__(self, path: Path, header: Path):
        data = header.read_bytes()
        try:
            entries = json.loads(data[8:])
            entries.pop("__metadata__", None)
            self.specs = {name: TensorSpec(BY_NAME[e["dtype"]], tuple(e["shape"])) for name, e in entries.items()}
            self._offsets = {name: len(data) + e["data_offsets"][0] for name, e in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{header} is no safetensors header ({error}): copy the folder again") from error
        self.path, self.size = path, len(data) + sum(spec.nbytes for spec in self.specs.values())
        with open(path, "wb") as file:
            file.write(data)
            file.truncate(self.size)

    def write(self, name: str, tensor: Tensor) -> None:
        """Raises CheckpointError for a tensor that the header does not know so."""
        try:
            super().write(name, tensor)
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{name} is not in {self.path.name}{HEADER}, or another: copy it again") from error
