"""Models that stock transformers dequantized from an INT4 folder, made into what `load_model` makes of it.

What `from_pretrained(…, quantization_config=CompressedTensorsConfig(dequantize=True))` leaves depends on the version:

- transformers 5.16 to 5.23: exact weights, and the grid beside them as parameters, which `save_pretrained` writes.
- transformers 5.24: plain linears without a grid. Each weight is `scale * (code - zero_point)` rounded to the dtype of
  the stored scales, then cast: exact in a model of that dtype, not in a float32 model of a bfloat16 folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from sqft_plugins.checkpoint.attached import SCALE, SHAPE, ZERO_POINT, attach_grid, has_grid
from sqft_plugins.checkpoint.dequantize import int4_layers
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.formats import PackQuantized
from sqft_plugins.errors import CheckpointError
from sqft_plugins.progress import say
from sqft_plugins.structure import is_linear, set_weight, weight_of


@torch.no_grad()
def restore_grids(model: nn.Module, quiet: bool = False) -> None:
    """Gives the INT4 linears of a stock model what `load_model` gives them: the grid, as buffers that are not saved,
    and exact weights, written in place, which it says unless `quiet`.

    A layer is INT4 where it has a grid, or where its weight is that of the folder that the model was loaded from
    (`name_or_path`; a name on the hub is looked up in its cache), rounded as transformers rounds it. Other layers, and
    models without such a folder, stay as they are. Raises CheckpointError, GridError for a damaged INT4 folder.
    """
    _keep_out_of_files(model)
    folder = _folder_of(model)
    if folder is None:
        return

    layers = {name: model.get_submodule(path) for name, path in int4_layers(model, folder).items()}
    changed = 0
    for name, layer in layers.items():
        weight = layer._parameters.get("weight")  # packed, computed anew or sharded weights have no such parameter
        if is_linear(layer) and not has_grid(layer) and weight is not None and type(weight.data) is torch.Tensor:
            changed += 0 if weight.is_meta else _restore(layer, folder, name)
    if changed and not quiet:
        say(
            f"{folder.path}: {changed} weights are exact now, which transformers had rounded: load_model, or "
            "dtype='auto', loads them so"
        )


def _keep_out_of_files(model: nn.Module) -> None:
    """Makes the grids that transformers leaves as parameters buffers that are not saved. What `save_pretrained` writes
    is then a folder of plain linears; with the scales, which belong to codes that are not there, vLLM refuses it."""
    for layer in model.modules():
        for name in (SCALE, SHAPE, ZERO_POINT):
            if isinstance(layer._parameters.get(name), nn.Parameter) and layer._parameters.get("weight") is not None:
                tensor = cast(nn.Parameter, layer._parameters.pop(name)).data
                layer.register_buffer(name, tensor, persistent=False)


def _folder_of(model: nn.Module) -> ModelFolder | None:
    """The pack-quantized folder that a model was loaded from, None where there is none on this machine."""
    path = Path(name := str(getattr(model, "name_or_path", "")))
    if name and not path.is_dir():
        try:
            cached = try_to_load_from_cache(name, "config.json")
        except ValueError:  # a path that is gone, which can be no name on the hub
            return None
        path = Path(cached).parent if isinstance(cached, str) else path
    if not name or not (path / "config.json").is_file():
        return None

    folder = ModelFolder(path)
    try:
        packed = folder.grid is not None and isinstance(folder.int4, PackQuantized) and folder.files
    except CheckpointError:  # another format, which left no grid of ours
        return None
    return folder if packed else None


def _restore(layer: Any, folder: ModelFolder, name: str) -> int:
    """Attaches its grid to a layer that holds the weight of an INT4 module → how many weights were not exact."""
    stored, weight = folder.quantized(name), weight_of(layer).cpu()
    rounded = stored.dequantize(folder.int4.scale_spec(name).dtype).to(weight.dtype)
    exact = stored.dequantize(weight.dtype)
    if weight.shape != exact.shape or not (torch.equal(weight, rounded) or torch.equal(weight, exact)):
        return 0

    changed = int(torch.count_nonzero(weight != exact))
    if changed:
        set_weight(layer, exact)
    attach_grid(layer, folder.int4.grid, stored.scale, stored.zero_point)
    return changed
