"""Quantized folders as plain float linears, whatever their format.

transformers opens only the first, and since 5.24 it rounds each weight to the dtype of the stored scales, then casts it
to the model's (restore.py): a float32 model of a bfloat16 folder would not hold the folder's weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sqft_plugins.checkpoint.attached import attach_grid, mark_codes
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.stamp import OtherGrid
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import Grid
from sqft_plugins.progress import say
from sqft_plugins.structure import auto_class, transformers_config


class Lazy:
    """Stands for a tensor in a state dict as safetensors' slices do: transformers asks for `[...]` when it fills the
    parameter, so that float weights are in memory once."""

    def __init__(self, read: Callable[[], Tensor]):
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read()[index]


def load_dequantized(folder: ModelFolder, dtype: torch.dtype | str = "auto", **kwargs: Any) -> PreTrainedModel:
    """The model with `scale * (code - zero_point)`, rounded once to its dtype, as float weights. INT4 linears carry the
    grid, see attached.py; experts, which transformers makes one tensor of, do not, and linears of other kinds of grids
    are marked only.

    kwargs: for `from_pretrained`. Raises CheckpointError for tensors that are missing, left over or of another shape.
    """
    grids: dict[str, Grid] = {}

    def dequantized(name: str, transposed: bool) -> Tensor:
        weight = folder.quantized(name)
        grids[name] = weight.grid
        exact = weight.dequantize()
        return exact.t().contiguous() if transposed else exact

    skeleton = skeleton_of(folder)
    model = load_filled(folder, skeleton, dequantized, dtype, **kwargs)
    for name, path in skeleton.layers.items():
        layer, grid = model.get_submodule(path), grids[name]
        if isinstance(folder.int4.grid, OtherGrid) or grid.zero_point is None:
            mark_codes(layer)
        else:
            attach_grid(layer, folder.int4.grid, grid.scale, grid.zero_point)
    return model


@dataclass(frozen=True)
class Skeleton:
    """What is known of the model of an INT4 folder before a weight is read.

    config: its configuration, without that of the quantization.
    empty: the model on the device meta.
    layers: INT4 module of the folder → its path in the model, of those that are a layer there.
    """

    config: PreTrainedConfig
    empty: PreTrainedModel
    layers: Mapping[str, str]


def skeleton_of(folder: ModelFolder) -> Skeleton:
    """Raises what transformers raises for a folder whose class it does not know."""
    config = transformers_config(folder.path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        empty = auto_class(config).from_config(config)
    return Skeleton(config, empty, int4_layers(empty, folder))


def load_filled(
    folder: ModelFolder,
    skeleton: Skeleton,
    fill: Callable[[str, bool], Tensor],
    dtype: torch.dtype | str = "auto",
    **kwargs: Any,
) -> PreTrainedModel:
    """The model of an INT4 folder, its INT4 weights from `fill`.

    skeleton: of this folder.
    fill: (module, transposed) → its weight, [in, out] where `transposed` says that the layer is a Conv1D, else
        [out, in]; called once a module, from several threads.
    kwargs, errors: as `load_dequantized`.
    """
    empty, layers = skeleton.empty, skeleton.layers

    # INT4 weights from `fill`, everything else as it is stored
    state: dict[str, Lazy] = {}
    for name in folder.int4.modules:
        transposed = name in layers and isinstance(empty.get_submodule(layers[name]), Conv1D)
        state[f"{name}.weight"] = Lazy(partial(fill, name, transposed))
    stored = {part for name in folder.int4.modules for part in folder.parts(name)}
    rest = [name for name in folder.tensor_names if name not in stored]
    state |= {name: Lazy(partial(folder.tensor, name)) for name in rest}

    model = load_state(folder, type(empty), skeleton.config, state, dtype, **kwargs)
    if (folder.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder.path)
    return model


def load_state(
    folder: ModelFolder,
    kind: Any,
    config: Any,
    state: Mapping[str, Lazy],
    dtype: torch.dtype | str,
    **kwargs: Any,
) -> PreTrainedModel:
    """A model of the class `kind` of transformers with the tensors of `state`, which are those of `folder`; kwargs,
    errors: as `load_dequantized`."""
    model: PreTrainedModel
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=dict(state),
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # `_check` refuses them
        **kwargs,
    )
    _check(folder, info)
    model.name_or_path = model.config.name_or_path = str(folder.path)  # PEFT writes it into the adapter
    return model


def int4_layers(model: nn.Module, folder: ModelFolder) -> dict[str, str]:
    """INT4 module of the folder → path of that layer in the model. A folder of the bare body of a model lacks the first
    part; single experts are no layers of the model."""
    paths = {name for name, _ in model.named_modules()}
    prefix = getattr(model, "base_model_prefix", "")
    found = {name: [path for path in (name, f"{prefix}.{name}") if path in paths] for name in folder.int4.modules}
    return {name: places[0] for name, places in found.items() if places}


def _check(folder: ModelFolder, info: Mapping[str, Any]) -> None:
    left_over = []
    for name in sorted(info["unexpected_keys"]):
        # AutoGPTQ gives a bias of zeros to layers that have none
        if name.endswith(".bias") and name in folder.files and not bool(folder.tensor(name).any()):
            say(f"{folder.path}: {name} is zero and the model has no such bias: left out")
        else:
            left_over.append(name)

    problems = {
        "lacks": sorted(info["missing_keys"]),
        "has, but the model does not know,": left_over,
        "has in another shape": sorted(name for name, *_ in info["mismatched_keys"]),
        "has damaged": sorted(info["conversion_errors"]) if "conversion_errors" in info else [],
    }
    for what, names in problems.items():
        if names:
            raise CheckpointError(
                f"model {folder.path} {what} the tensor {names[0]} ({len(names)} in all): copy the whole model again"
            )
