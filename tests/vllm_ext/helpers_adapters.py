"""Adapter folders for tests, as PEFT saves them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

MODULES = {
    "model.layers.0.self_attn.q_proj": (64, 64),
    "model.layers.0.mlp.down_proj": (128, 64),
    "model.layers.1.self_attn.q_proj": (64, 64),
}
"""module → (in, out)."""
Q0, DOWN, Q1 = MODULES


def write_adapter(folder: Path, modules=MODULES, r=8, choices=(8, 6, 4), seed=0, peft_type="SQFT", **config) -> Path:
    """A folder with random A [r, in] and B [out, r]; peft_type LORA has no fields of ours."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (inputs, outputs) in modules.items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = torch.randn(r, inputs, generator=generator) / inputs**0.5
        tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, r, generator=generator) * 0.3
    ends = sorted({name.rpartition(".")[2] for name in modules})
    ours = {} if peft_type == "LORA" else {"sparse": False, "quantization_aware": False}
    ours |= {"rank_choices": list(choices)} if choices else {}
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"peft_type": peft_type, "r": r, "lora_alpha": 2 * r, "target_modules": ends, "bias": "none", **ours}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_configuration(folder: Path, name: str, ranks: dict) -> Path:
    file = folder / "configurations" / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(ranks))
    return file


def change(folder, edit=None, **config):
    """Edits an adapter: edit(tensors) in place, and fields of its configuration; None takes a field out."""
    file, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if edit is not None:
        tensors = load_file(file)
        edit(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    changed = {**json.loads(settings.read_text()), **config}
    settings.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))
    return folder
