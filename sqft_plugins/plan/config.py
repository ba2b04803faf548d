"""A model whose weights are not here: its config.json says what they would be, so a plan needs a few kB and no download
of them."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.hub import config_folder
from sqft_plugins.checkpoint.shards import TensorSpec, layout
from sqft_plugins.checkpoint.tensors import INDEX, SINGLE
from sqft_plugins.compress.float_model import FloatModel
from sqft_plugins.errors import CheckpointError, first_line
from sqft_plugins.progress import say
from sqft_plugins.structure import auto_class


class ConfigFolder(ModelFolder):
    """A model folder without weights, as if they were in one file, each tied one once."""

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Tensor name → the dtype and shape that config.json means. Raises CheckpointError for a config that
        transformers does not know."""
        try:
            config: Any = AutoConfig.from_pretrained(self.path)
            with torch.device("meta"):
                model: Any = auto_class(config).from_config(config)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{self.path}/config.json is of no model that is known ({first_line(error)})"
            ) from error

        model.tie_weights()
        dtype = config.dtype or torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype

        # a tied tensor once
        found: dict[int, tuple[str, torch.Tensor]] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            found.setdefault(id(tensor), (name, tensor))
        return {
            name: TensorSpec(dtype if tensor.is_floating_point() else tensor.dtype, tuple(tensor.shape))
            for name, tensor in found.values()
        }

    @cached_property
    def files(self) -> dict[str, Path]:
        return dict.fromkeys(self.specs, self.path / SINGLE)

    def spec(self, name: str) -> TensorSpec:
        return self.specs[name]

    @property
    def weight_bytes(self) -> int:
        return len(layout(self.specs)[0]) + sum(spec.nbytes for spec in self.specs.values())


class ConfigModel(FloatModel):
    """What `FloatModel` is for a folder with weights."""

    opens = ConfigFolder


def open_source(model: str | Path, exclude: Any = ()) -> FloatModel:
    """The source to plan for: a folder, with or without weights, or a name on the hub, of which config.json alone is
    fetched."""
    path = config_folder(model)
    weights = [*path.glob("*.safetensors"), *path.glob(INDEX)]
    if weights or not (path / "config.json").is_file():
        return FloatModel(path, exclude)
    _say_once(str(model))
    return ConfigModel(path, exclude)


@cache
def _say_once(model: str) -> None:
    say(f"{model} has no weights here: planned from its config.json")


def has_weights(source: FloatModel) -> bool:
    return not isinstance(source, ConfigModel)
