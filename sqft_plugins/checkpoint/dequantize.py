"""INT4 folders that transformers cannot open as plain float linears: AutoGPTQ's, the compact form, those of Conv1D."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sqft_plugins.checkpoint.attached import attach_grid
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.formats import PackQuantized
from sqft_plugins.errors import CheckpointError
from sqft_plugins.progress import say
from sqft_plugins.structure import structure_of_folder


class Lazy:
    """Stands for a tensor in a state dict as safetensors' slices do: transformers asks for `[...]` when it fills the
    parameter, so that float weights are in memory once."""

    def __init__(self, read: Callable[[], Tensor]):
        self._read = read

    def __getitem__(self, index: Any) -> Tensor:
        return self._read()[index]


def why_not_stock(folder: ModelFolder) -> str | None:
    """Why transformers cannot dequantize this INT4 folder; None where it can."""
    if folder.int4.name != PackQuantized.name:
        return f"transformers does not read {folder.int4.name}"
    known = set(folder.int4.modules)
    for name in sorted(structure_of_folder(folder.path).transposed):
        if name in known or name.partition(".")[2] in known:  # the latter in a folder of the bare body of a model
            return f"compressed-tensors does not decompress a Conv1D ({name})"
    return None


def load_dequantized(folder: ModelFolder, dtype: torch.dtype | str = "auto", **kwargs: Any) -> PreTrainedModel:
    """The model with `scale * (code - zero_point)`, rounded once to its dtype, as float weights. INT4 linears carry the
    grid as those that transformers dequantizes do: see attached.py.

    kwargs: for `from_pretrained`. Raises CheckpointError for tensors that are missing, left over or of another shape.
    """
    scales: dict[str, tuple[Tensor, Tensor]] = {}

    def dequantized(name: str, transposed: bool) -> Tensor:
        weight = folder.quantized(name)
        scales[name] = (weight.scale, weight.zero_point)
        exact = weight.dequantize()
        return exact.t().contiguous() if transposed else exact

    model, layers = load_filled(folder, dequantized, dtype, **kwargs)
    for name, path in layers.items():
        attach_grid(model.get_submodule(path), folder.int4.grid, *scales[name])
    return model


def load_filled(
    folder: ModelFolder, fill: Callable[[str, bool], Tensor], dtype: torch.dtype | str = "auto", **kwargs: Any
) -> tuple[PreTrainedModel, dict[str, str]]:
    """The model of an INT4 folder, the weights of its INT4 linears from `fill`; and INT4 module of the folder → path in
    the model.

    fill: (module, transposed) → its weight, [in, out] where `transposed` says that the layer is a Conv1D, else
    [out, in]; called once a module, from several threads. kwargs, errors: as `load_dequantized`.
    """
    config = AutoConfig.from_pretrained(folder.path)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config)
    layers = _int4_layers(empty, folder)

    # INT4 weights from `fill`, everything else as it is stored
    state: dict[str, Lazy] = {}
    for name, path in layers.items():
        state[f"{name}.weight"] = Lazy(partial(fill, name, isinstance(empty.get_submodule(path), Conv1D)))
    stored = {part for name in layers for part in folder.parts(name)}
    rest = [name for name in folder.tensor_names if name not in stored]
    state |= {name: Lazy(partial(folder.tensor, name)) for name in rest}

    model, info = type(empty).from_pretrained(
        None,
        config=config,
        state_dict=state,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # `_check` refuses them
        **kwargs,
    )
    _check(folder, info)

    model.name_or_path = model.config._name_or_path = str(folder.path)  # PEFT writes it into the adapter
    if (folder.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder.path)
    return model, layers


def _int4_layers(model: PreTrainedModel, folder: ModelFolder) -> dict[str, str]:
    """INT4 module of the folder → path in the model: a folder of the bare body of a model lacks the first part."""
    paths = {name for name, _ in model.named_modules()}
    layers = {}
    for name in folder.int4.modules:
        found = [path for path in (name, f"{model.base_model_prefix}.{name}") if path in paths]
        if not found:
            raise CheckpointError(
                f"model {folder.path}: {name} is INT4 but {type(model).__name__} has no such layer: check config.json"
            )
        layers[name] = found[0]
    return layers


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
