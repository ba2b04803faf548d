"""A value plane: the codes of a base at its kept places, with a quantization-aware adapter merged at one rank.

Such a merge moves codes only (`sqft merge`): mask, scales and zero points stay the base's, so a plane holds none of
them. On disk it is one safetensors file; for each adapted module

    <module>    u8 [bytes]    the codes of the kept weights (packing.py)

of INT4 2 bits a weight at 50 %, as `values` of the compact form (sqft_plugins.checkpoint.compact). The key `sqft_plane`
of the file's metadata holds the stamp. The bytes are not checked against a hash; their number is, against the mask.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sqft_plugins._version import VERSION
from sqft_plugins.adapter.folder import AdapterFolder
from sqft_plugins.checkpoint import ModelFolder, write_file
from sqft_plugins.checkpoint.int4 import combined_hash, digest_of
from sqft_plugins.checkpoint.recode import Recoded
from sqft_plugins.errors import CheckpointError, MismatchError
from sqft_plugins.identity import file_hash, while_unchanged
from vllm_ext.planes.packing import pack_kept, unpack_kept

PLANE_VERSION = 1
KEY = "sqft_plane"
SUFFIX = ".safetensors"


class PlaneStamp(BaseModel):
    """base: what the INT4 folder under the plane must be (`base_identity`). adapter: of its weights and its scaling
    (`adapter_identity`). ranks: module → rank. codes_changed: the fraction of kept codes that differ from the base."""

    model_config = ConfigDict(extra="forbid")
    version: int = PLANE_VERSION
    created_by: str = f"sqft-plugins {VERSION}"
    base: dict[str, Any]
    adapter: str
    ranks: dict[str, int]
    codes_changed: float

    @property
    def key(self) -> str:
        """The same for planes that are interchangeable; a file name."""
        return plane_key(self.base, self.adapter, self.ranks)


def plane_key(base: Mapping[str, Any], adapter: str, ranks: Mapping[str, int]) -> str:
    """The name of a plane by its contents: 32 hexadecimal digits."""
    return _digest({"base": base, "adapter": adapter, "ranks": ranks})[:32]


def base_identity(folder: ModelFolder) -> dict[str, Any]:
    """What of an INT4 folder must not differ: its stamp, but for its path and the release that wrote it, and its codes:
    two merges of one base have the same stamp. Raises MismatchError for a folder that has no stamp, or is float."""
    if folder.grid is None:
        raise MismatchError(f"model {folder.path} is float: value planes are of its quantized folder, name that one")
    if folder.stamp is None:
        raise MismatchError(
            f"model {folder.path} has no stamp (sqft/stamp.json), so a plane cannot be known for its own: "
            "make it with `sqft quantize`"
        )
    stamp = folder.stamp.model_dump(mode="json", exclude={"base", "created_by"}, exclude_none=True)
    return stamp | {"code_hash": code_hash(folder.path)}


@while_unchanged
def code_hash(folder: Path) -> str:
    """SHA-256 of the INT4 codes of all modules, in whatever form the folder stores them."""
    model = ModelFolder(folder)
    return combined_hash({module: digest_of(model.quantized(module).codes) for module in model.int4.modules})


def adapter_identity(adapter: Path) -> str:
    """SHA-256 of an adapter's weights and of what its configuration says on ranks and scaling; its path, and that of
    its base, may change. Raises CheckpointError."""
    folder = AdapterFolder(adapter)
    try:
        weights = file_hash(folder.weights)
    except OSError as error:
        raise CheckpointError(f"adapter {adapter} cannot be read ({error}): copy it again") from error
    fields = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "mask_hash", "grid_stamp")
    return _digest({"weights": weights, "config": {field: folder.config.get(field) for field in fields}})


def write_plane(path: str | Path, stamp: PlaneStamp, merged: Recoded, overwrite: bool = False) -> Path:
    """Writes the plane of a merged folder and reads it back.

    Raises MismatchError, before anything is written, where a pruned place does not hold its zero point.
    """
    values = {}
    for module, own in merged.codes.items():
        mask = merged.kept(module)
        if own.shape != mask.shape or merged.quantized(module).lost_zeros(mask):
            raise MismatchError(f"the codes of {module} do not fit the mask of {merged.path}: they are another model's")
        values[module] = pack_kept(own, mask, merged.int4.grid.bits)
    with write_file(path, overwrite) as file:
        save_file(values, file, metadata={KEY: stamp.model_dump_json()})
        written = PlaneFile(file)
        for module, own in merged.codes.items():
            if not torch.equal(written.codes(module, merged), own):
                raise CheckpointError(f"{path} does not hold what was written: the disk is broken")
    return Path(path)


@dataclass(frozen=True)
class PlaneFile:
    """A plane on disk; its tensors are read one at a time. Raises CheckpointError for a file that is none."""

    path: Path

    @property
    def stamp(self) -> PlaneStamp:
        with self._open() as handle:
            text = (handle.metadata() or {}).get(KEY)
        if text is None:
            raise CheckpointError(f"{self.path} is no value plane: write it with `sqft export plane`")

        try:
            data = json.loads(text)
            version = data["version"]
            if version <= PLANE_VERSION:
                return PlaneStamp(**data)
        except (ValueError, TypeError, KeyError) as error:  # ValidationError is a ValueError
            raise CheckpointError(f"{self.path}: its stamp is damaged: export the plane again") from error
        raise CheckpointError(
            f"{self.path} is a plane of version {version}, this release reads up to {PLANE_VERSION}: upgrade "
            "sqft-plugins"
        )

    @property
    def modules(self) -> list[str]:
        with self._open() as handle:
            return sorted(handle.keys())

    def codes(self, module: str, base: ModelFolder) -> Tensor:
        """uint8 [out, in]. Raises CheckpointError where the bytes are not as many as the mask of `base` keeps."""
        mask, zero_point = _layout(base, module)
        with self._open() as handle:
            values = handle.get_tensor(module)
        try:
            return unpack_kept(values, mask, zero_point, base.int4.grid.bits)
        except CheckpointError as error:
            raise CheckpointError(
                f"{module} of {self.path} does not fit {base.path}: export the plane again"
            ) from error

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} is damaged or gone ({error}): export the plane again") from error


def _layout(base: ModelFolder, module: str) -> tuple[Tensor, Tensor]:
    """mask bool [out, in] and zero point uint8 [out, groups] (one group where all are the same)."""
    mask, grid = base.kept(module), base.int4.grid
    if grid.symmetric:  # spares reading the codes
        return mask, torch.full((mask.shape[0], 1), grid.kind.symmetric_zero_point, dtype=torch.uint8)
    return mask, base.quantized(module).zero_point


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
