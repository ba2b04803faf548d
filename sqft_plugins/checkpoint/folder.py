"""A model folder, read one tensor at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqft_plugins.checkpoint.compact_folder import BITMASK, METHOD, PREFIX
from sqft_plugins.checkpoint.formats import Int4Format, open_format
from sqft_plugins.checkpoint.gptq_folder import CONFIG_FILE
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.checkpoint.shards import BY_NAME, TensorSpec
from sqft_plugins.checkpoint.stamp import FOLDER, MASK_FILE, GridStamp, Stamp, read_stamp
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.mask import packed_mask_shape, unpack_mask
from sqft_plugins.structure import structure_of_folder

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
GPTQ_SINGLE = "gptq_model*.safetensors"
"""AutoGPTQ's own name for a single file."""
REMEDY = "copy the model again"


class ModelFolder:
    """A model as `from_pretrained` reads it: config.json and safetensors, float or INT4 in the formats of formats.py.

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
        self.config: dict[str, Any] = read_object(config, REMEDY)

    @cached_property
    def stamp(self) -> Stamp | None:
        return read_stamp(self.path)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name → the file that holds it."""
        prefix = PREFIX if (self.quantization or {}).get("quant_method") == METHOD else ""
        index, single = self.path / f"{prefix}{INDEX}", self.path / f"{prefix}{SINGLE}"
        if index.is_file() and not single.is_file():  # of both, one is a remainder; transformers takes the single file
            return self._indexed(index)
        if not single.is_file() and (self.quantization or {}).get("quant_method") == "gptq":
            single = next(iter(sorted(self.path.glob(GPTQ_SINGLE))), single)
        if not single.is_file():
            raise CheckpointError(
                f"model {self.path} has no {single.name}: save it with save_pretrained(safe_serialization=True)"
            )
        with self._open(single) as handle:
            return dict.fromkeys(handle.keys(), single)

    def _indexed(self, index: Path) -> dict[str, Path]:
        try:
            files = {name: self.path / file for name, file in read_object(index, REMEDY)["weight_map"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is no weight index ({error}): copy the model again") from error
        held: dict[Path, set[str]] = {}
        for file in sorted(set(files.values())):
            if not file.is_file():
                raise CheckpointError(f"{file} is named in {index.name} but missing: copy the model again")
            with self._open(file) as handle:  # a file that is cut off says so here, before the long work
                held[file] = set(handle.keys())
        for name, file in files.items():
            if name not in held[file]:
                raise CheckpointError(f"{index} says that {name} is in {file.name}, it is not: copy the model again")
        return files

    @property
    def tensor_names(self) -> list[str]:
        """The tensors of the model: `files` without the masks that the compact form keeps there."""
        return [name for name in self.files if not name.endswith(BITMASK)]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files on disk."""
        return sum(file.stat().st_size for file in set(self.files.values()))

    def tensor(self, name: str) -> Tensor:
        """One tensor, as stored."""
        return self._read(self._file(name), name)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header alone."""
        with self._open(self._file(name)) as handle:
            return tuple(handle.get_slice(name).get_shape())

    def spec(self, name: str) -> TensorSpec:
        """dtype and shape of one tensor, from the header alone."""
        with self._open(self._file(name)) as handle:
            stored = handle.get_slice(name)
            dtype = stored.get_dtype()
            if dtype not in BY_NAME:
                raise CheckpointError(f"tensor {name} of {self.files[name]} has the unknown type {dtype}: convert it")
            return TensorSpec(BY_NAME[dtype], tuple(stored.get_shape()))

    def nbytes(self, name: str) -> int:
        """Bytes of one tensor on disk, from the header alone."""
        with self._open(self._file(name)) as handle:
            stored = handle.get_slice(name)
            dtype = stored.get_dtype()  # "BF16", "I32", "F8_E4M3", "BOOL"
            return math.prod(stored.get_shape()) * (
                1 if dtype == "BOOL" else int(re.sub(r"^\D+(\d+).*", r"\1", dtype)) // 8
            )

    # --- INT4 ---

    @cached_property
    def quantization(self) -> dict[str, Any] | None:
        """The `quantization_config` of config.json, completed by AutoGPTQ's quantize_config.json; None for float."""
        config = self.config.get("quantization_config")
        if config is not None and not isinstance(config, dict):
            raise CheckpointError(f"{self.path}/config.json: quantization_config is no JSON object: {REMEDY}")
        beside = self.path / CONFIG_FILE
        if beside.is_file() and (config is None or config.get("quant_method") == "gptq"):
            return {"quant_method": "gptq", **read_object(beside, REMEDY), **(config or {})}
        return config

    @cached_property
    def _format(self) -> Int4Format:
        return open_format(self, self.quantization)

    @property
    def format_name(self) -> str:
        """How INT4 weights are stored: "pack-quantized", "AutoGPTQ" or "the compact form"."""
        return self._format.name

    @cached_property
    def grid(self) -> GridStamp | None:
        """The grid of an INT4 folder, None for a float one. Raises CheckpointError for other quantized formats."""
        return None if self.quantization is None else self._format.grid

    @cached_property
    def quantized_modules(self) -> list[str]:
        """Modules that are stored as INT4, in name order."""
        marks = self._format.marks
        return sorted(name.removesuffix(mark) for name in self.files for mark in marks if name.endswith(mark))

    def quantized(self, module: str) -> QuantizedWeight:
        """The codes, scales (exact, float32) and zero points of an INT4 module.

        Scales have 8 significant bits where this project made them; those of AutoGPTQ are fp16 numbers of 11 bits.
        Raises CheckpointError or GridError, naming the tensor, for what is missing, damaged or out of range.
        """
        if module not in self._quantized:
            raise CheckpointError(f"model {self.path} has no INT4 weight {module}: it is float, or another model's")
        return self._format.quantized(module)

    def quantized_shape(self, module: str) -> tuple[int, int]:
        """(out, in) of an INT4 module, without reading its codes."""
        return self._format.shape(module)

    def scale_spec(self, module: str) -> TensorSpec:
        """How the scales of an INT4 module are stored: a folder made from this one keeps them exactly in that dtype."""
        return self.spec(self._format.scales(module))

    def parts(self, module: str) -> list[str]:
        """The tensors in which the weight of a module is stored, float or INT4."""
        if module not in self._quantized:
            return [self.weight_name(module)]
        return [f"{module}{part}" for part in self._format.parts if f"{module}{part}" in self.files]

    def weight_name(self, module: str) -> str:
        """The tensor of a float weight. A folder of the bare body of a model (GPT-2 and Bloom are published so) keeps
        it without the first part of the module's name."""
        body = module.partition(".")[2]
        return next((f"{name}.weight" for name in (module, body) if f"{name}.weight" in self.files), f"{module}.weight")

    def weight(self, module: str) -> Tensor:
        """The weight of a module [out, in]: as stored (a float Conv1D is [in, out]), or dequantized to float32."""
        if module in self._quantized:
            return self.quantized(module).dequantize()
        return self.tensor(self.weight_name(module))

    @cached_property
    def _quantized(self) -> frozenset[str]:
        return frozenset(self.quantized_modules)

    # --- masks ---

    @cached_property
    def packed_masks(self) -> Mapping[str, Tensor]:
        """Module name → packed mask, as stored, read when it is asked for; empty where the folder has none."""
        if BITMASK in self._format.parts:
            names = {name.removesuffix(BITMASK): name for name in self.files if name.endswith(BITMASK)}
            return LazyTensors(names, lambda module: self.tensor(names[module]))
        file = self.path / FOLDER / MASK_FILE
        if not file.is_file():
            if self.stamp is not None:
                raise CheckpointError(f"{file} is missing although the model is stamped: copy the whole folder again")
            return {}
        with self._open(file) as handle:
            return LazyTensors(handle.keys(), lambda module: self._read(file, module))

    def mask(self, module: str) -> Tensor | None:
        """bool [out, in], True = kept; None where the folder has no mask for the module.

        An AutoGPTQ folder has no masks. What stands in for one is `codes != zero_point`, a guess: a kept weight that
        was rounded to zero counts as pruned.
        """
        if module not in self.packed_masks:
            return None
        packed = self.packed_masks[module]
        shape = self._format.shape(module) if module in self._quantized else self._float_shape(module, packed)
        if packed.shape != packed_mask_shape(shape):
            raise CheckpointError(
                f"mask of {module} is {tuple(packed.shape)} but its weight {shape}: the mask is another model's"
            )
        return unpack_mask(packed, shape[1])

    def kept(self, module: str) -> Tensor | None:
        """The mask of an INT4 module, all True for one that pruning has left out; None where the folder has no masks at
        all, and nothing tells which of its codes were pruned."""
        mask = self.mask(module)
        if mask is not None or not self.packed_masks:
            return mask
        return torch.ones(self.quantized_shape(module), dtype=torch.bool)

    def _float_shape(self, module: str, packed: Tensor) -> tuple[int, ...]:
        name = self.weight_name(module)
        shape = self.spec(name).shape
        turned = packed.shape == packed_mask_shape(shape[::-1]) != packed_mask_shape(shape)
        if turned and module in structure_of_folder(self.path).transposed:  # a Conv1D: the weight is [in, out]
            return shape[::-1]
        return shape

    def _file(self, name: str) -> Path:
        if name not in self.files:
            raise CheckpointError(
                f"model {self.path} has no tensor {name}: copy the whole model again; if a mask or a stamp names it, "
                f"they are another model's"
            )
        return self.files[name]

    def _read(self, file: Path, name: str) -> Tensor:
        with self._open(file) as handle:
            return handle.get_tensor(name)

    @contextmanager
    def _open(self, file: Path) -> Iterator[Any]:
        try:
            with safe_open(file, framework="pt") as handle:
                yield handle
        except (SafetensorError, FileNotFoundError) as error:
            raise CheckpointError(f"{file} is damaged or cut off ({error}): copy the model again") from error


class LazyTensors(Mapping[str, Tensor]):
    """Name → tensor, read anew each time it is asked for: the masks of a big model need not be in memory together."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Tensor]):
        self._names, self._read = dict.fromkeys(names), read

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self._names
