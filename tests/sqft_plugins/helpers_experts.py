"""Tiny mixtures of experts."""

from __future__ import annotations

from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

SMALL = {
    "vocab_size": 640, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_local_experts": 4, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
}  # fmt: skip


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**SMALL))
