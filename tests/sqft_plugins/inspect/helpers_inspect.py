"""An adapter folder with zeros in it."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file


def make_adapter(path, ranks):
    path.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "base", "lora_alpha": 16, "r": 8, "mask_hash": "h"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for index, rank in enumerate(ranks):
        name = f"base_model.model.model.layers.{index}.mlp.up_proj"
        tensors[f"{name}.lora_A.weight"] = torch.zeros(rank, 64)
        tensors[f"{name}.lora_B.weight"] = torch.zeros(128, rank)
    save_file(tensors, path / "adapter_model.safetensors")
    return path
