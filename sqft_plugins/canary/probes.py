"""Behaviours of transformers with compressed-tensors that the core relies on, or goes round, tried out on a tiny model.
Each returns why it does not hold, or None."""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.checkpoint.attached import SCALE, has_grid
from sqft_plugins.checkpoint.int4 import int4_tensors, quantization_config
from sqft_plugins.checkpoint.restore import restore_grids
from sqft_plugins.checkpoint.stamp import GridStamp
from sqft_plugins.grid import QuantizedWeight, round_to_nearest
from sqft_plugins.progress import quiet_libraries

MODULE = "model.layers.0.mlp.up_proj"


def int4_is_restored() -> str | None:
    """Whether `restore_grids` knows a model again that transformers has read."""
    with _read() as (model, written):
        restore_grids(model, quiet=True)
        layer = model.get_submodule(MODULE)
        return _other_weights(layer, written) if has_grid(layer) else "the layer is not taken for an INT4 one"


def int4_is_read_exactly() -> str | None:
    """Whether the floats are those of `QuantizedWeight.dequantize`, in a wider dtype than that of the scales."""
    with _read() as (model, written):
        return _other_weights(model.get_submodule(MODULE), written)


def int4_keeps_its_scale() -> str | None:
    """Whether the scale is still in the layer."""
    with _read() as (model, _):
        layer = model.get_submodule(MODULE)
        return None if isinstance(getattr(layer, SCALE, None), Tensor) else f"the layer has no {SCALE}"


def _other_weights(layer: nn.Module, written: QuantizedWeight) -> str | None:
    found = layer.get_parameter("weight").detach()
    wrong = int((found != written.dequantize(found.dtype)).sum())
    return f"{wrong} of {found.numel()} weights are others" if wrong else None


@contextmanager
def _read() -> Iterator[tuple[nn.Module, QuantizedWeight]]:
    """A bfloat16 INT4 folder as transformers reads it into float32, and what was written of MODULE."""
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1)).bfloat16()

    grid = GridStamp(bits=4, group_size=32, symmetric=True)
    tensors = dict(model.state_dict())
    written = round_to_nearest(tensors.pop(f"{MODULE}.weight").float(), None, grid.group_size, grid.symmetric)
    tensors |= int4_tensors(MODULE, written, grid, torch.bfloat16)
    others = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != MODULE]

    # compressed-tensors draws a bar that no setting of its own turns off
    no_bar = redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as folder, quiet_libraries(), no_bar, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.config.quantization_config = quantization_config(grid, others)
        model.config.save_pretrained(folder)
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        settings = CompressedTensorsConfig(dequantize=True)
        yield (
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=settings),
            written,
        )
