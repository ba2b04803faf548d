"""Quantization-aware adapters with random weights: what a plane holds does not depend on how well they were trained."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

CHOICES = [8, 6, 4]
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]


def write_qa_adapter(
    folder: Path, int4: Path, base: Path | None = None, seed: int = 0, size: float = 0.05, **config
) -> Path:
    """Saves an adapter over the INT4 folder, or over the float model `base` that it was made from. size: of B's values;
    the default moves about a third of the codes of a tiny model."""
    from peft import get_peft_model

    from peft_ext import SQFTConfig
    from sqft_plugins.checkpoint import load_model

    model = load_model(base or int4, dtype=torch.float32)
    settings = {
        "r": 8, "lora_alpha": 16, "rank_choices": CHOICES, "target_modules": TARGETS, "task_type": "CAUSAL_LM",
        "quantization_aware": True, "grid": str(int4) if base else None, **config,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*put_rest_on_grid")  # the other modules do not matter here
        tuned = get_peft_model(model, SQFTConfig(**settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    tuned.save_pretrained(str(folder))
    return folder


def merged_codes(model: Path, adapter: Path, out: Path, rank, grid: Path | None = None) -> dict[str, Tensor]:
    """Module → codes uint8 [out, in] of the folder that `sqft merge` writes."""
    from sqft_plugins.checkpoint import ModelFolder
    from sqft_plugins.tune.merge import merge_folder

    merge_folder(model, adapter, out, rank, grid=grid)
    merged = ModelFolder(out)
    return {module: merged.quantized(module).codes for module in merged.int4.modules}
