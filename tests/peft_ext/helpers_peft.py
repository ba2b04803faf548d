"""Sparse tiny models and filled adapters."""

from __future__ import annotations

import torch

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
