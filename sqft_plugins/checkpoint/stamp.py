"""The stamp: what was done to a model or adapter, and the mask that travels with it.

A stamped model folder has a subfolder `sqft/` with `stamp.json` and `mask.safetensors` (module name → packed mask); it
is a subfolder because vLLM loads every `*.safetensors` beside the weights. The stamp also stands in `config.json`, as a
flag: transformers may drop it there, so `sqft/stamp.json` is the authority.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from torch import Tensor

from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.checkpoint.shards import ShardFile, TensorSpec
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import ACT_ORDER, FP8_E4M3, MXFP4, NF4, NVFP4, UNIFORM, GridKind
from sqft_plugins.mask import mask_hash, packed_mask_shape

STAMP_VERSION = 1
FOLDER = "sqft"
STAMP_FILE = "stamp.json"
MASK_FILE = "mask.safetensors"


class GridStamp(BaseModel):
    """The uniform grid of a quantized model: `group_size` -1 is per channel."""

    model_config = ConfigDict(extra="forbid")
    bits: int = 4
    group_size: int = 32
    symmetric: bool = True

    @field_validator("bits")
    @classmethod
    def _check_bits(cls, value: int) -> int:
        if value not in UNIFORM:
            raise ValueError(f"bits={value} is no grid: use {', '.join(map(str, UNIFORM))}")
        return value

    @property
    def kind(self) -> GridKind:
        """INT4 for 4 bits."""
        return UNIFORM[self.bits]

    @property
    def label(self) -> str:
        """As users read it, such as "INT4"."""
        return self.kind.name.upper()


class OtherGrid(GridStamp):
    """The grid of a folder of others, of a kind that this project reads and does not make. name: of the kind."""

    name: str

    @property
    def kind(self) -> GridKind:
        return OTHER_KINDS[self.name]


OTHER_KINDS = {kind.name: kind for kind in (FP8_E4M3, MXFP4, NVFP4, NF4, *ACT_ORDER.values())}


class Stamp(BaseModel):
    """pipeline: what was done, oldest first, such as ["wanda", "sparse-peft", "merge", "round-to-nearest"].
    sparsity: fraction of pruned weights over all masked modules. mask_hash: of the packed masks (`mask.mask_hash`).
    scale_hash: of the INT4 scales. base: name or path of the model this was made from. ranks: module → rank merged."""

    model_config = ConfigDict(extra="forbid")
    version: int = STAMP_VERSION
    created_by: str = f"sqft-plugins {VERSION}"
    pipeline: list[str]
    base: str | None = None
    sparsity: float
    mask_hash: str
    grid: GridStamp | None = None
    scale_hash: str | None = None
    ranks: dict[str, int] | None = None

    def then(self, step: str, **changes: Any) -> Stamp:
        """A copy with one more pipeline step."""
        update = {"pipeline": [*self.pipeline, step], "created_by": f"sqft-plugins {VERSION}", **changes}
        return self.model_copy(update=update)


def parse_stamp(data: Mapping[str, Any], source: str) -> Stamp:
    """Raises CheckpointError for a stamp of a newer version or one that does not parse."""
    version = data.get("version")
    if not isinstance(version, int) or version > STAMP_VERSION:
        raise CheckpointError(
            f"{source} has stamp version {version}, this release reads up to {STAMP_VERSION}: upgrade sqft-plugins"
        )
    try:
        return Stamp(**data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{source}: stamp field {where}: {first['msg']}: make the folder again") from error


def read_stamp(folder: Path) -> Stamp | None:
    """The stamp of a model folder, None where it has none."""
    file = folder / FOLDER / STAMP_FILE
    return parse_stamp(read_object(file, "make the folder again"), str(file)) if file.is_file() else None


def write_sidecar(folder: Path, stamp: Stamp, packed_masks: Mapping[str, Tensor]) -> None:
    """Writes `sqft/stamp.json` and `sqft/mask.safetensors`, and the stamp as a flag into `config.json`."""
    if mask_hash(packed_masks) != stamp.mask_hash:
        raise CheckpointError("stamp.mask_hash does not belong to the masks: make both from the same masks")
    mask_file(folder, {}, packed_masks)
    write_stamp(folder, stamp)


def mask_file(folder: Path, made: Mapping[str, Sequence[int]], kept: Mapping[str, Tensor]) -> ShardFile:
    """The mask file of a model folder, laid out.

    made: module → (out, in) of the weights whose masks are still to be written. kept: module → packed mask, which is
    written here.
    """
    (folder / FOLDER).mkdir(exist_ok=True)
    shapes: dict[str, tuple[int, ...]] = {name: packed_mask_shape(shape) for name, shape in made.items()}
    shapes |= {name: tuple(packed.shape) for name, packed in kept.items()}
    masks = ShardFile(folder / FOLDER / MASK_FILE, {n: TensorSpec(torch.uint8, shape) for n, shape in shapes.items()})
    for name, packed in kept.items():
        masks.write(name, packed)
    return masks


def write_stamp(folder: Path, stamp: Stamp) -> None:
    """Writes `sqft/stamp.json`, and the stamp as a flag into `config.json`."""
    (folder / FOLDER).mkdir(exist_ok=True)
    data = stamp.model_dump(exclude_none=True)
    (folder / FOLDER / STAMP_FILE).write_text(json.dumps(data, indent=2) + "\n")
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text())
    flag = {key: value for key, value in data.items() if key != "ranks"}
    if "quantization_config" in config:
        config["quantization_config"]["sqft"] = flag
        config.pop("sqft", None)
    else:
        config["sqft"] = flag
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def remove_flag(folder: Path) -> None:
    """Takes the flag out of the `config.json` of a float model that is not pruned any more."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("sqft", None)
    file.write_text(json.dumps(config, indent=2) + "\n")
