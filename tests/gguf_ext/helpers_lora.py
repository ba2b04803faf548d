"""Adapters whose B is not zero, and the logits that PEFT gives with them."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import peft_ext  # noqa: F401 (registers SQFT with PEFT)
from gguf_ext import LlamaSession

TOKENS = torch.randint(4, 600, (120,), generator=torch.Generator().manual_seed(3)).tolist()


def save_adapter(base, folder, targets, seed=0, config=LoraConfig, **settings):
    """A saved adapter whose B is not zero."""
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = get_peft_model(loaded, config(target_modules=targets, **{"r": 8, "lora_alpha": 16, **settings}))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return folder


def peft_logits(base, adapter):
    with torch.no_grad():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
        return model.merge_and_unload()(torch.tensor([TOKENS])).logits[0]


def logits(session):
    return torch.cat([chunk.clone() for chunk in session.logits(TOKENS)])


def session_of(file):
    return LlamaSession(file, threads=1, kv_type="f32", flash_attention=False)
