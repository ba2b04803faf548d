"""Sparse tiny models and filled adapters."""

from __future__ import annotations

import pytest
import torch
import transformers
from peft import get_peft_model

from peft_ext import SQFTConfig
from peft_ext.loading_guards import newer_peft_wanted

by_transformers = pytest.mark.skipif(
    newer_peft_wanted() is not None,
    reason=f"the adapter calls of transformers {transformers.__version__} want PEFT {newer_peft_wanted()} or newer",
)
"""A test of transformers' own `add_adapter`, `load_adapter` and `set_adapter`."""
TARGETS = ["q_proj", "k_proj", "v_proj", "up_proj", "down_proj"]


def sparsify(model, sparsity: float = 0.5):
    """Zeroes random weights of the decoder's linears, always the same ones."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "layers." in name and parameter.ndim == 2:
            parameter.data[torch.rand(parameter.shape, generator=generator) < sparsity] = 0
    return model


def fill_adapter(model, scale: float = 0.05):
    """Random A and B for every adapter, always the same ones."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator) * scale
            parameter.data.copy_(noise)
    return model


def config(**changes) -> SQFTConfig:
    return SQFTConfig(**{"r": 8, "lora_alpha": 16, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **changes})


def elastic(**changes) -> SQFTConfig:
    return config(rank_choices=[8, 6, 4], **changes)


def logits(model, tokens) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def two_adapters(base, first: SQFTConfig, second: SQFTConfig):
    """Both active in turn, with random factors."""
    model = get_peft_model(base, first)
    model.add_adapter("second", second)
    return fill_adapter(model).eval()
