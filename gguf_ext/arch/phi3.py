"""Phi 3 and 4 (mini): transformers `Phi3ForCausalLM` → llama.cpp `phi3`, with q, k, v and gate, up fused in both."""

from __future__ import annotations

from gguf_ext.arch.decoder import decoder_note, why_not, windowed_context
from gguf_ext.arch.rope import rope_constants, rope_entries
from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Entry, Rule


def _reason(config: Config) -> str:
    return why_not("phi3", config, ("default", "longrope"), partial=True)


def _entries(config: Config) -> list[Entry]:
    return [windowed_context("phi3", config), *rope_entries("phi3", config)]


PHI3 = Architecture(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    keys=tuple(key for key in DECODER_KEYS if key.name != "context_length"),
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
    reason=_reason,
    entries=_entries,
    constants=rope_constants,
    note=decoder_note,
)
