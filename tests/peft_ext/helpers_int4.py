"""A sparse tiny model on disk and the INT4 folder made from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers_peft import TARGETS, sparsify

from peft_ext import SQFTConfig
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.quantize import quantize_folder

CHOICES = [8, 6, 4]


@dataclass(frozen=True)
class Pair:
    """pruned: the sparse float folder. int4: made from it."""

    pruned: Path
    int4: Path

    def load(self, kind: str, dtype: torch.dtype = torch.float32):
        """The base of a quantization-aware adapter, "int4" or "float", as a model."""
        return load_model(self.int4 if kind == "int4" else self.pruned, dtype=dtype)

    def config(self, kind: str, **changes) -> SQFTConfig:
        settings = {
            "r": 8,
            "lora_alpha": 16,
            "rank_choices": CHOICES,
            "target_modules": TARGETS,
            "task_type": "CAUSAL_LM",
            "quantization_aware": True,
            "grid": None if kind == "int4" else str(self.int4),
        }
        return SQFTConfig(**{**settings, **changes})

    def folder(self) -> ModelFolder:
        return ModelFolder(self.int4)


def make_pair(make_model: Callable, folder: Path, family: str = "llama", tokenizer=None, **grid) -> Pair:
    """grid: group_size and symmetric, as `quantize_folder` takes them."""
    model = make_model(family)
    if family == "gpt2":
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ".h." in name:
                parameter.data[::2] = 0
    else:
        sparsify(model)
    model.save_pretrained(folder / "pruned")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "pruned")
    quantize_folder(folder / "pruned", folder / "int4", **grid)
    return Pair(folder / "pruned", folder / "int4")


def without_masks(int4: Path, target: Path) -> None:
    """A copy of an INT4 folder that says nothing of masks, as one of AutoGPTQ does not."""
    shutil.copytree(int4, target)
    shutil.rmtree(target / "sqft")
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"].pop("sqft")
    (target / "config.json").write_text(json.dumps(config))
