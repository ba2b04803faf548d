"""Phi 3 and 4 (mini): transformers `Phi3ForCausalLM` → llama.cpp `phi3`, with q, k, v and gate, up fused in both."""

from __future__ import annotations

from typing import Any

from gguf_ext.arch.decoder import decoder
from gguf_ext.arch.rope import told_rope
from gguf_ext.arch.spec import Rule, Told


def _told(told: Told) -> dict[str, Any]:
    rope = told_rope(told)
    original = rope.get("original_max_position_embeddings", told.get("context_length"))
    return {"model_type": "phi3", "sliding_window": None, "original_max_position_embeddings": original}


PHI3 = decoder(
    "phi3",
    "Phi3ForCausalLM",
    (
        Rule("model.embed_tokens"),
        Rule("model.norm"),
        Rule("lm_head", required=False),
        Rule("model.layers.{i}.input_layernorm"),
        Rule("model.layers.{i}.self_attn.qkv_proj"),
        Rule("model.layers.{i}.self_attn.o_proj"),
        Rule("model.layers.{i}.post_attention_layernorm"),
        Rule("model.layers.{i}.mlp.gate_up_proj"),
        Rule("model.layers.{i}.mlp.down_proj"),
    ),
    rope_types=("default", "longrope"),
    windowed=True,
    parts=True,
    told=_told,
)
