"""A model folder, read one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.formats import Int4Format, find_format
from sqft_plugins.checkpoint.hub import check_folder
from sqft_plugins.checkpoint.json_object import REMEDY, read_object
from sqft_plugins.checkpoint.stamp import FOLDER, MASK_FILE, GridStamp, Stamp, read_stamp
from sqft_plugins.checkpoint.tensors import TensorFiles, find_tensors, open_tensors, read_header, read_tensor
from sqft_plugins.errors import CheckpointError, MismatchError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.grid.packed import PackedCodes, PackedWeight
from sqft_plugins.mask import packed_mask_shape, unpack_mask
from sqft_plugins.structure import meta_model, structure_of_folder

if TYPE_CHECKING:
    from sqft_plugins.checkpoint.stored_names import StoredNames


class ModelFolder(TensorFiles):
    """A model as `from_pretrained` reads it: config.json and safetensors, float or INT4 in the formats of formats/.
    It is a `WeightSource`.

    | you want                                            | call                                        |
    |-----------------------------------------------------|---------------------------------------------|
    | the weight of a linear layer, [out, in]             | `weight(module)`, `weight_shape(module)`    |
    | the codes, scales and zero points of an INT4 layer  | `quantized(module)`                         |
    | whether a layer is INT4, and which are              | `is_quantized(module)`, `int4.modules`      |
    | how INT4 is stored: format, scales, shape           | `storage`, `int4.scale_spec`, `int4.shape`  |
    | the grid, None for a float folder                   | `grid`                                      |
    | the mask of a layer; the packed masks by module     | `mask(module)`; `masks`                     |
    | what was done to the model                          | `stamp`                                     |
    | the tensors in which a layer's weight is stored     | `parts(module)`, `weight_name(module)`      |
    | any tensor by its name in the files                 | `tensor(name)`, `spec(name)`, `files`       |

    Raises CheckpointError, naming the file, for whatever is missing or damaged.
    """

    dense = False
    """Whether no weight is pruned, whatever is 0: only a file of others says so."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config: dict[str, Any] = read_object(check_folder(path), REMEDY)

    @cached_property
    def stamp(self) -> Stamp | None:
        return read_stamp(self.path)

    # --- tensors ---

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name → the file that holds the tensor."""
        kind = self._format[0]
        return find_tensors(self.path, kind.prefix, kind.single)

    @property
    def tensor_names(self) -> list[str]:
        """The tensors of the model: `files` without the masks that the compact form keeps there."""
        mask = self._format[0].bitmask
        return [name for name in self.files if mask is None or not name.endswith(mask)]

    def parts(self, module: str) -> list[str]:
        """The tensors in which the weight of a module is stored, float or INT4."""
        return self.int4.parts(module) if self.is_quantized(module) else [self.weight_name(module)]

    def module_bytes(self, module: str) -> int:
        """Bytes on disk of the weight, with scales and zero points, without the mask file."""
        return sum(self.spec(name).nbytes for name in self.parts(module))

    def own_name(self, name: str) -> str:
        """The name in the files of a tensor that the model calls `name`, the first where it is made of several. A
        folder of the bare body of a model (GPT-2 and Bloom are published so) leaves out the first part; other families
        have names of their own (`StoredNames`)."""
        near = next((own for own in (name, name.partition(".")[2]) if own in self.files), None)
        return near or next(iter(self.stored_names.sources(name)), name)

    @cached_property
    def stored_names(self) -> StoredNames:
        """What the model's parameters are called in the files. Raises CheckpointError for a config that transformers
        does not know."""
        from sqft_plugins.checkpoint.stored_names import StoredNames  # imports transformers

        return StoredNames(meta_model(self.path), self)

    def weight_name(self, module: str) -> str:
        """The tensor of a float weight, or the first of several."""
        return self.own_name(f"{module}.weight")

    def _weight(self, module: str) -> Tensor:
        """A float weight in the layout of its parameter."""
        name = self.weight_name(module)
        if f"{module}.weight".endswith(name):  # but for a prefix the model's own name: nothing is converted
            return self.tensor(name)
        return self.stored_names.read(f"{module}.weight")

    # --- weights ---

    def weight_shape(self, module: str) -> tuple[int, int]:
        """(out, in), without reading the weight."""
        if self.is_quantized(module):
            return self.int4.shape(module)
        rows, columns = self._weight_shape(module)
        return (columns, rows) if self.is_transposed(module) else (rows, columns)

    def _weight_shape(self, module: str) -> tuple[int, ...]:
        """As the parameter has it, from headers alone."""
        name = self.weight_name(module)
        if f"{module}.weight".endswith(name):
            return self.spec(name).shape
        return tuple(self.stored_names.model.get_parameter(f"{module}.weight").shape)

    def weight(self, module: str) -> Tensor:
        """The weight of a module [out, in]: as stored, or dequantized to float32. Raises CheckpointError for a config
        that transformers does not know."""
        if self.is_quantized(module):
            return self.quantized(module).dequantize()
        weight = self._weight(module)
        return weight.t() if self.is_transposed(module) else weight

    def is_transposed(self, module: str) -> bool:
        """Whether the files hold a float weight [in, out], as those of GPT-2's Conv1D are."""
        return module in structure_of_folder(self.path).transposed

    # --- INT4 ---

    @cached_property
    def _format(self) -> tuple[type[Int4Format], dict[str, Any] | None]:
        config = self.config.get("quantization_config")
        if config is not None and not isinstance(config, dict):
            raise CheckpointError(f"{self.path}/config.json: quantization_config is no JSON object: {REMEDY}")
        return find_format(self.path, config)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """The `quantization_config` of config.json, completed by AutoGPTQ's quantize_config.json; None for float."""
        return self._format[1]

    @cached_property
    def int4(self) -> Int4Format:
        """The INT4 weights, as the folder's format stores them; without modules in a float folder. Raises
        CheckpointError for other quantized formats."""
        kind, settings = self._format
        return kind(self, settings)

    @cached_property
    def grid(self) -> GridStamp | None:
        """The grid of an INT4 folder, None for a float one. Raises CheckpointError for other quantized formats."""
        return None if self.quantization is None else self.int4.grid

    @property
    def label(self) -> str:
        """Its grid for messages, such as "INT3"; "float" where it has none."""
        return "float" if self.grid is None else self.grid.label

    @property
    def storage(self) -> str:
        """How the linear weights are stored: "float", or the name of the INT4 format."""
        return "float" if self.grid is None else self.int4.name

    def is_quantized(self, module: str) -> bool:
        """Whether the weight is INT4."""
        return module in self.int4

    def quantized(self, module: str) -> QuantizedWeight:
        """The codes, scales (exact, float32) and zero points of an INT4 module.

        Scales have 8 significant bits where this project made them; those of others are fp16 numbers of 11 bits, or
        have all of float32's.
        Raises CheckpointError or GridError, naming the tensor, for what is missing, damaged or out of range.
        """
        if not self.is_quantized(module):
            raise CheckpointError(f"model {self.path} has no codes of {module}: it is float, or another model's")
        return self.int4.weight(module)

    def packed(self, module: str) -> PackedWeight:
        """The same weight in memory, and packed there. Raises what `quantized` raises."""
        return PackedCodes.of(self.quantized(module))

    # --- masks ---

    @cached_property
    def masks(self) -> StoredMasks:
        """Module name → packed mask (`mask.pack_mask`), as stored, read when it is asked for; empty where the
        folder has none."""
        if mask := self.int4.bitmask:
            ours = (name for name in self.files if name.endswith(mask))
            return StoredMasks({name.removesuffix(mask): (self.files[name], name) for name in ours})
        file = self.path / FOLDER / MASK_FILE
        if file.is_file():
            with open_tensors(file) as handle:
                return StoredMasks({module: (file, module) for module in handle.keys()})  # noqa: SIM118
        if self.stamp is not None:
            raise CheckpointError(f"{file} is missing although the model is stamped: copy the whole folder again")
        return StoredMasks({})

    def mask(self, module: str) -> Tensor | None:
        """bool [out, in], True = kept; None where the folder has no mask for the module.

        A folder of another program has no masks. What stands in for one is `codes != zero_point`, a guess: a kept
        weight that was rounded to zero counts as pruned.
        """
        if module not in self.masks:
            return None
        return unpack_mask(self.masks[module], self.masked_shape(module)[1])

    def masked_shape(self, module: str) -> tuple[int, ...]:
        """(out, in) of a weight that has a mask, from headers alone. Raises CheckpointError where the mask is another
        model's."""
        packed = self.masks.shape(module)
        shape = self.int4.shape(module) if self.is_quantized(module) else self._weight_shape(module)

        # only where the mask fits the turned weight alone: asking which weights are turned imports transformers
        turned = packed == packed_mask_shape(shape[::-1]) != packed_mask_shape(shape)
        if turned and self.is_transposed(module):
            shape = shape[::-1]
        if packed != packed_mask_shape(shape):
            raise CheckpointError(
                f"mask of {module} is {packed} but its weight {shape}: the mask is another model's, copy the whole "
                "folder again"
            )
        return shape

    def kept(self, module: str) -> Tensor:
        """The mask of an INT4 module, all True for one that pruning has left out. Raises what `check_masked` raises."""
        self.check_masked()
        mask = self.mask(module)
        return torch.ones(self.int4.shape(module), dtype=torch.bool) if mask is None else mask

    def check_masked(self) -> None:
        """Raises MismatchError for an INT4 folder without any masks: which of its codes were pruned is unknown."""
        if not self.masks:
            raise MismatchError(
                f"{self.path} has no mask (sqft/mask.safetensors), and codes alone do not say what was pruned: "
                "where none was, train with sparse=False (--dense); else train over the sparse float base with "
                "grid='…', or quantize it with `sqft quantize`, which stores the mask"
            )


class StoredMasks(Mapping[str, Tensor]):
    """Module → packed mask, read anew each time it is asked for: the masks of a big model need not be in memory
    together. places: module → file, and the mask's name there."""

    def __init__(self, places: Mapping[str, tuple[Path, str]]):
        self._places = places

    def shape(self, module: str) -> tuple[int, ...]:
        """Of the packed mask, from the header alone."""
        return self._shapes[module]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        headers = {file: read_header(file) for file in {file for file, _ in self._places.values()}}
        return {module: headers[file][name][1] for module, (file, name) in self._places.items()}

    def __getitem__(self, module: str) -> Tensor:
        return read_tensor(*self._places[module])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, module: object) -> bool:  # Mapping's own would read the tensor
        return module in self._places
