"""Logits of a file against those of its model, and kinds of rotary positions."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from gguf_ext import LlamaSession

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
"""Of a tiny model with fewer heads of keys than of queries."""
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def difference(model, file, tokens, context=256):
    """(max |dlogit|, mean KL) of llama.cpp against transformers, both in fp32."""
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        reference = loaded(torch.tensor([tokens])).logits[0]
    with LlamaSession(file, threads=1, kv_type="f32", flash_attention=False, context=context) as session:
        logits = torch.cat([chunk.clone() for chunk in session.logits(tokens)])
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((reference - logits).abs().max()), float((p.exp() * (p - q)).sum(-1).mean())
