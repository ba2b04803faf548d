"""Llama 1, 2 and 3: transformers `LlamaForCausalLM` → llama.cpp `llama`."""

from __future__ import annotations

from typing import Any

from gguf_ext.arch.decoder import decoder, decoder_rules
from gguf_ext.arch.rope import FACTORED
from gguf_ext.arch.spec import Told


def _told(told: Told) -> dict[str, Any]:
    biases = {"attention_bias": "attn_q", "mlp_bias": "ffn_up"}
    return {"model_type": "llama"} | {name: f"blk.0.{of}.bias" in told.tensors for name, of in biases.items()}


LLAMA = decoder(
    "llama",
    "LlamaForCausalLM",
    decoder_rules(rotated=True, qkv_bias="optional", bias="optional"),
    FACTORED,
    told=_told,
)
