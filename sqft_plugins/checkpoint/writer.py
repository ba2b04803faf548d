"""Writing a model folder tensor by tensor, sharded like the folder it is made from."""

from __future__ import annotations

import fnmatch
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.shards import ShardFile, TensorSpec
from sqft_plugins.checkpoint.stamp import FOLDER
from sqft_plugins.checkpoint.tensors import INDEX, SINGLE
from sqft_plugins.progress import track

CONFIG = "config.json"
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.index.json")


class FolderWriter:
    """The weight files of `target`, with the same shards as `source`, laid out at once and filled in any order.

    changed: tensor name in `source` → the tensors that take its place there. renamed: tensor name in `source` → name in
    `target`, for those that are copied. prefix: of the file names; empty but in the compact form. Opened again on a
    folder that is half filled, it goes on.
    """

    def __init__(
        self,
        source: ModelFolder,
        target: Path,
        changed: Mapping[str, Mapping[str, TensorSpec]],
        renamed: Mapping[str, str] | None = None,
        prefix: str = "",
    ):
        self.source, self.target, self._prefix = source, target, prefix
        self._copied = {name: (renamed or {}).get(name, name) for name in source.files if name not in changed}
        copied = {name: {here: source.spec(name)} for name, here in self._copied.items()}
        layouts = shard_layouts(source, {**changed, **copied})
        self._shards = {file: ShardFile(target / f"{prefix}{file}", specs) for file, specs in layouts.items()}
        self._where = {name: shard for shard in self._shards.values() for name in shard.specs}
        if set(layouts) != {SINGLE}:
            self._write_index()

    def write(self, name: str, tensor: Tensor) -> None:
        self._where[name].write(name, tensor)

    def copy_rest(self) -> None:
        """Copies every tensor that is not changed, one at a time."""
        for name, here in self._copied.items():
            self.write(here, self.source.tensor(name))

    def _write_index(self) -> None:
        weight_map = {name: shard.path.name for name, shard in sorted(self._where.items())}
        total = sum(spec.nbytes for shard in self._shards.values() for spec in shard.specs.values())
        metadata = {"total_size": total}
        if not self._prefix:  # the compact form's index has no such count
            numbers = sum(math.prod(s.shape) for shard in self._shards.values() for s in shard.specs.values())
            metadata = {"total_parameters": numbers, **metadata}
        index = {"metadata": metadata, "weight_map": weight_map}
        (self.target / f"{self._prefix}{INDEX}").write_text(json.dumps(index, indent=2) + "\n")


def shard_layouts(
    source: ModelFolder, tensors: Mapping[str, Mapping[str, TensorSpec]]
) -> dict[str, dict[str, TensorSpec]]:
    """File name → its tensors, for a folder with the shards of `source`. tensors: for every tensor name in the source,
    what takes its place."""
    layouts: dict[str, dict[str, TensorSpec]] = {file.name: {} for file in source.files.values()}
    for name, file in source.files.items():
        layouts[file.name].update(tensors[name])
    return layouts


def copy_weight_files(source: ModelFolder, target: Path) -> None:
    """The weight files of a folder and their index, as they are."""
    files = set(source.files.values())
    index = source.path / INDEX
    if index.is_file() and not (source.path / SINGLE).is_file():
        files.add(index)
    for file in track(sorted(files), "copying"):
        copy = target / file.relative_to(source.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def copy_side_files(source: ModelFolder, target: Path) -> None:
    """Everything beside the weights and config.json: tokenizer, generation config, licence.

    Copies of the model in other weight formats stay behind: they would be of the old weights, and vLLM loads every
    `*.safetensors` it finds.
    """
    for name in sorted({entry.name for entry in source.path.iterdir()} - {CONFIG, FOLDER}):
        file = source.path / name
        if _left_behind(file):
            continue
        if file.is_file():
            shutil.copyfile(file, target / name)
        else:
            shutil.copytree(file, target / name, ignore=_ignored, dirs_exist_ok=True)


def write_config(target: Path, config: Mapping[str, Any]) -> None:
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def is_weight_file(file: Path) -> bool:
    """Whether a file is weights or their index, by its name; also of hidden files."""
    return file.name.startswith(".") or any(fnmatch.fnmatch(file.name, pattern) for pattern in WEIGHT_FILES)


def _ignored(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if _left_behind(Path(folder) / name)]


def _left_behind(file: Path) -> bool:
    """Hidden files, weights, what can be read neither as a file nor as a folder (a broken link), and links upwards."""
    if is_weight_file(file):
        return True
    if not (file.is_file() or file.is_dir()):
        return True
    return file.is_symlink() and file.parent.resolve().is_relative_to(file.resolve())
