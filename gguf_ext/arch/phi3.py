"""Phi 3 and 4 (mini): transformers `Phi3ForCausalLM` → llama.cpp `phi3`, with q, k, v and gate, up fused in both."""

from __future__ import annotations

from functools import partial

from gguf_ext.arch.decoder import WINDOWED_KEYS, decoder_note, why_not, windowed_entries
from gguf_ext.arch.rope import rope_constants
from gguf_ext.arch.spec import Architecture, Rule

PHI3 = Architecture(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    keys=WINDOWED_KEYS,
    rules=(
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
    reason=partial(why_not, "phi3", rope_types=("default", "longrope"), parts=True),
    entries=partial(windowed_entries, "phi3"),
    constants=rope_constants,
    note=decoder_note,
)
