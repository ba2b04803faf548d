"""A model folder, read one tensor at a time."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqft_plugins.checkpoint.stamp import FOLDER, MASK_FILE, GridStamp, Stamp, read_stamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import (
    PER_CHANNEL,
    SYMMETRIC_ZERO_POINT,
    QuantizedWeight,
    group_width,
    unpack,
    unpack_zero_point,
)
from sqft_plugins.mask import unpack_mask

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class ModelFolder:
    """A folder as `from_pretrained` reads it: config.json and safetensors, float or INT4 (`pack-quantized`).

    Raises CheckpointError, naming the file, for whatever is missing or damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_dir():
            raise CheckpointError(f"model {path} is not a folder: give the path of a model saved by save_pretrained")
        config = self.path / "config.json"
        if not config.is_file():
            hint = (
                "it is an adapter, give its base model"
                if (self.path / "adapter_config.json").is_file()
                else "give a model folder"
            )
            raise CheckpointError(f"model {path} has no config.json: {hint}")
        try:
            self.config: dict[str, Any] = json.loads(config.read_text())
        except json.JSONDecodeError as error:
            raise CheckpointError(f"{config} is not JSON ({error}): copy the model again") from error

    @cached_property
    def stamp(self) -> Stamp | None:
        return read_stamp(self.path)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name → the file that holds it."""
        index = self.path / INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
            except (json.JSONDecodeError, KeyError) as error:
                raise CheckpointError(f"{index} is no weight index ({error}): copy the model again") from error
            files = {name: self.path / file for name, file in weight_map.items()}
            for file in set(files.values()):
                if not file.is_file():
                    raise CheckpointError(f"{file} is named in {INDEX} but missing: copy the model again")
                with self._open(file):  # a file that is cut off says so here, before the long work
                    pass
            return files
        single = self.path / SINGLE
        if not single.is_file():
            raise CheckpointError(
                f"model {self.path} has no {SINGLE}: save it with save_pretrained(safe_serialization=True)"
            )
        with self._open(single) as handle:
            return dict.fromkeys(handle.keys(), single)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files on disk."""
        return sum(file.stat().st_size for file in set(self.files.values()))

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored."""
        if name not in self.files:
            raise CheckpointError(f"model {self.path} has no tensor {name}: the mask or stamp belongs to another model")
        with self._open(self.files[name]) as handle:
            return handle.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        with self._open(self.files[name]) as handle:
            return tuple(handle.get_slice(name).get_shape())

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor on disk, from the header alone."""
        with self._open(self.files[name]) as handle:
            stored = handle.get_slice(name)
            dtype = stored.get_dtype()  # "BF16", "I32", "F8_E4M3", "BOOL"
            return math.prod(stored.get_shape()) * (
                1 if dtype == "BOOL" else int(re.sub(r"^\D+(\d+).*", r"\1", dtype)) // 8
            )

    # --- INT4 ---

    @cached_property
    def grid(self) -> GridStamp | None:
        """The grid of an INT4 folder, None for a float one. Raises CheckpointError for other quantized formats."""
        config = self.config.get("quantization_config")
        if config is None:
            return None
        method, layout = config.get("quant_method"), config.get("format")
        if method != "compressed-tensors" or layout != "pack-quantized":
            raise CheckpointError(
                f"model {self.path} is quantized as {method}/{layout}: this release reads pack-quantized only"
            )
        weights = [group["weights"] for group in config["config_groups"].values()]
        first = weights[0]
        kind = (first["num_bits"], first.get("type", "int")) if first else None
        if any(w != first for w in weights) or kind != (4, "int") or first.get("actorder"):
            raise CheckpointError(
                f"model {self.path} mixes grids, is not 4-bit or is act-ordered: quantize it again with one grid"
            )
        size = PER_CHANNEL if first["strategy"] == "channel" else first["group_size"]
        return GridStamp(group_size=size, symmetric=first["symmetric"])

    @cached_property
    def quantized_modules(self) -> list[str]:
        """Modules that are stored as INT4, in name order."""
        end = ".weight_packed"
        return sorted(name.removesuffix(end) for name in self.files if name.endswith(end))

    def quantized(self, module: str) -> QuantizedWeight:
        """The codes, scales and zero points of an INT4 module."""
        out_features, in_features = (int(n) for n in self.tensor(f"{module}.weight_shape"))
        scale = self.tensor(f"{module}.weight_scale").to(torch.float32)
        codes = unpack(self.tensor(f"{module}.weight_packed"), in_features)
        if self.grid is None:
            raise CheckpointError(
                f"{self.path}/config.json has no quantization_config but {module} is packed: copy the model again"
            )
        groups = in_features // group_width(in_features, self.grid.group_size, module)
        if scale.shape != (out_features, groups):
            raise CheckpointError(
                f"{module}.weight_scale is {tuple(scale.shape)}, expected {(out_features, groups)}: copy it again"
            )
        if self.grid.symmetric:
            zero_point = torch.full_like(scale, SYMMETRIC_ZERO_POINT, dtype=torch.uint8)
        else:
            zero_point = unpack_zero_point(self.tensor(f"{module}.weight_zero_point"), out_features)
        return QuantizedWeight(codes, scale, zero_point)

    def weight(self, module: str) -> Tensor:
        """The weight of a module [out, in]: as stored, or dequantized to float32."""
        if f"{module}.weight_packed" in self.files:
            return self.quantized(module).dequantize()
        return self.tensor(f"{module}.weight")

    # --- masks ---

    @cached_property
    def packed_masks(self) -> dict[str, Tensor]:
        """Module name → packed mask, as stored; empty where the folder has none."""
        file = self.path / FOLDER / MASK_FILE
        if not file.is_file():
            if self.stamp is not None:
                raise CheckpointError(f"{file} is missing although the model is stamped: copy the whole folder again")
            return {}
        with self._open(file) as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 (not a mapping)

    def mask(self, module: str) -> Tensor | None:
        """bool [out, in], True = kept; None where the folder has no mask for the module."""
        packed = self.packed_masks.get(module)
        if packed is None:
            return None
        if f"{module}.weight_packed" in self.files:
            shape = tuple(int(n) for n in self.tensor(f"{module}.weight_shape"))
        else:
            shape = self.shape(f"{module}.weight")
        if packed.shape != (shape[0], -(-shape[1] // 8)):
            raise CheckpointError(
                f"mask of {module} is {tuple(packed.shape)} but its weight {shape}: the mask is another model's"
            )
        return unpack_mask(packed, shape[1])

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in turn, file by file."""
        for file in sorted(set(self.files.values())):
            with self._open(file) as handle:
                for name in handle.keys():  # noqa: SIM118 (not a mapping)
                    yield name, handle.get_tensor(name)

    def _open(self, file: Path):
        try:
            return safe_open(file, framework="pt")
        except SafetensorError as error:
            raise CheckpointError(f"{file} is damaged or cut off ({error}): copy the model again") from error
