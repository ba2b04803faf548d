"""Mistral: transformers `MistralForCausalLM` → llama.cpp `llama`, which has the same graph but no sliding window."""

from __future__ import annotations

from gguf_ext.arch.decoder import decoder, decoder_rules
from gguf_ext.arch.rope import FACTORED

# a file of this architecture is read as Llama's, which has no window either
MISTRAL = decoder("llama", "MistralForCausalLM", decoder_rules(rotated=True), FACTORED, windowed=True)
