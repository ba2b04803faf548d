"""Llama 1, 2 and 3: transformers `LlamaForCausalLM` → llama.cpp `llama`."""

from __future__ import annotations

from gguf_ext.arch.decoder import decoder, decoder_rules
from gguf_ext.arch.rope import FACTORED

LLAMA = decoder(
    "llama", "LlamaForCausalLM", decoder_rules(rotated=True, qkv_bias="optional", bias="optional"), FACTORED
)
