"""A transformers model in memory, read as if it were the folder that it would be saved as.

Float weights are taken as they are. INT4 comes in two forms: packed, as transformers loads a compressed-tensors folder
before its first use, and as float weights with the grid on the layers (`weight_scale`), as `load_model` leaves them and
a QA merge does: there the codes are computed from weight and grid, and must give the weight back.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gguf_ext.errors import ModelInMemoryError
from sqft_plugins.checkpoint import GridStamp, ModelFolder, Stamp
from sqft_plugins.checkpoint.attached import SCALE, SHAPE, ZERO_POINT, attached_grid, attached_weight, has_grid
from sqft_plugins.checkpoint.folder import StoredMasks
from sqft_plugins.checkpoint.formats import Int4Format, find_format
from sqft_plugins.checkpoint.restore import restore_grids
from sqft_plugins.checkpoint.shards import TensorSpec
from sqft_plugins.checkpoint.tensors import TensorFiles
from sqft_plugins.errors import GridError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.structure import is_conv1d, transformers_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRID_PARTS = (f".{SCALE}", f".{SHAPE}", f".{ZERO_POINT}")


class ModelInMemory(ModelFolder):
    """model: a whole causal language model, on any device. like: a folder whose stamp and masks are this model's, such
    as the sparse base it was tuned from; None where it has none. name: for `general.name` and for messages.

    Raises ModelInMemoryError for a model with an adapter, without its weights (offloaded, meta), or off its grid.
    """

    def __init__(self, model: PreTrainedModel, like: str | Path | None = None, name: str | None = None):
        if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
            raise ModelInMemoryError("model holds an adapter: give what its merge_and_unload() returns")

        self.model = model
        self.path = Path(name or Path(str(model.config.name_or_path or "")).name or type(model).__name__)
        self.config: dict[str, Any] = model.config.to_dict()
        self.config["architectures"] = [type(model).__name__]
        self.like = None if like is None else ModelFolder(like)

        self._tensors: dict[str, Tensor] = dict(model.state_dict())
        lost = [key for key, tensor in self._tensors.items() if tensor.is_meta]
        if lost:
            raise ModelInMemoryError(
                f"{lost[0]} of the model ({len(lost)} in all) is not in memory: load it without offloading"
            )

        restore_grids(model)
        # the parts of a grid are no tensors of the checkpoint
        self._layers = {name: layer for name, layer in model.named_modules() if has_grid(layer)}
        if self._layers:
            for key in [key for key in self._tensors if key.endswith(GRID_PARTS)]:
                del self._tensors[key]
            self.config.pop("quantization_config", None)

    # --- what ModelFolder reads from files ---

    @cached_property
    def files(self) -> dict[str, Path]:
        return dict.fromkeys(self._tensors, self.path)

    def tensor(self, name: str) -> Tensor:
        self.file(name)
        return self._tensors[name].detach().cpu()

    def spec(self, name: str) -> TensorSpec:
        return TensorSpec.of(self._tensors[name])

    @cached_property
    def _format(self) -> tuple[type[Int4Format], dict[str, Any] | None]:
        return find_format(None, self.config.get("quantization_config"))

    @cached_property
    def stamp(self) -> Stamp | None:
        return None if self.like is None else self.like.stamp

    @cached_property
    def masks(self) -> StoredMasks:
        return StoredMasks({}) if self.like is None else self.like.masks

    @cached_property
    def int4(self) -> Int4Format:
        return LayersOnGrid(self, self._layers) if self._layers else super().int4

    @cached_property
    def grid(self) -> GridStamp | None:
        return self.int4.grid if self._layers else super().grid

    def is_transposed(self, module: str) -> bool:
        return is_conv1d(self.model.get_submodule(module))


def config_of(folder: ModelFolder) -> Any:
    """The configuration of a model as transformers has it. Raises CheckpointError for a config.json that it does not
    know."""
    return folder.model.config if isinstance(folder, ModelInMemory) else transformers_config(folder.path)


class LayersOnGrid(Int4Format):
    """INT4 as float weights with the grid on their layers (attached.py of the checkpoints)."""

    name = "a grid on each layer"
    declared = "in memory"

    def __init__(self, tensors: TensorFiles, layers: Mapping[str, Any]):
        super().__init__(tensors, None)
        self._layers = layers

    @cached_property
    def grid(self) -> GridStamp:
        first, *others = (attached_grid(layer) for layer in self._layers.values())
        if any(grid != first for grid in others):
            raise ModelInMemoryError("layers of the model have several kinds of grids: quantize it with one")
        return first

    @cached_property
    def modules(self) -> list[str]:
        return sorted(self._layers)

    def parts(self, module: str) -> list[str]:
        return [f"{module}.weight"]

    def shape(self, module: str) -> tuple[int, int]:
        rows, columns = (int(size) for size in self._layers[module].weight_shape)
        return rows, columns

    def scale_name(self, module: str) -> str:
        return f"{module}.{SCALE}"

    def weight(self, module: str) -> QuantizedWeight:
        try:
            found, wrong = attached_weight(self._layers[module])
        except GridError as error:
            raise ModelInMemoryError(f"{module}: {error}") from error
        if wrong:
            raise ModelInMemoryError(
                f"{wrong} weights of {module} are not on the grid of the layer ({SCALE}): merge a "
                f"quantization-aware adapter, or quantize the model again with `sqft quantize`"
            )
        return found
