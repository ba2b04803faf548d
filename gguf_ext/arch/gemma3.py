"""Gemma 3 text models: transformers `Gemma3ForCausalLM` → llama.cpp `gemma3`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gguf_ext.arch.rope import SCALED, rope_reason, scaling_entries, told_rope, yarn_attention
from gguf_ext.arch.spec import DECODER_KEYS, GELU_TANH, Architecture, Config, Entry, Key, Rule, Told, absent, short
from gguf_ext.arch.windows import told_window, window_entries, window_reason

PERIOD = 6
"""llama.cpp's default: every sixth layer sees the whole context, the others a window."""
LAYERS_27B = 62
"""llama.cpp knows the 27B model, whose attention is scaled differently, by its number of layers (gemma3.cpp)."""


def _reason(config: Config) -> str:
    full = config["rope_parameters"]["full_attention"]
    local = config["rope_parameters"]["sliding_attention"]
    if reason := rope_reason("gemma3", full, SCALED) or rope_reason("gemma3", local, ("default",)):
        return reason

    if full["rope_type"] == "yarn" and yarn_attention(full, config) != 1:
        # llama.cpp has one such factor, for the layers with a window too
        return "attention_factor, mscale of YaRN are fixed to their defaults in llama.cpp's gemma3"

    if reason := window_reason("gemma3", config):
        return reason

    # what llama.cpp's graph has fixed
    heads = config["hidden_size"] // config["num_attention_heads"]
    scalar = heads if config["num_hidden_layers"] == LAYERS_27B else config["head_dim"]
    if config["query_pre_attn_scalar"] != scalar:
        return f"query_pre_attn_scalar={config['query_pre_attn_scalar']} is fixed to {scalar:g} in llama.cpp"
    if config.get("final_logit_softcapping") is not None and not config["final_logit_softcapping"] > 0:
        return f"final_logit_softcapping={config['final_logit_softcapping']} caps every logit at nothing: leave it out"
    if reason := absent("gemma3", config, "attn_logit_softcapping", "use_bidirectional_attention", "attention_bias"):
        return reason
    if config.get("hidden_activation") not in GELU_TANH:
        return f"hidden_activation={config.get('hidden_activation')!r} does not exist in llama.cpp's gemma3"
    return ""


def _entries(config: Config) -> list[Entry]:
    entries = scaling_entries("gemma3", config["rope_parameters"]["full_attention"], config)
    entries += window_entries("gemma3", config, PERIOD)
    if config.get("final_logit_softcapping"):
        cap = float(config["final_logit_softcapping"])
        entries.append(Entry("gemma3.final_logit_softcapping", cap, "float32"))
    return entries


def _base(layers: str) -> Callable[[Config], Any]:
    """The rotary base of one kind of layers."""
    return lambda config: config["rope_parameters"][layers]["rope_theta"]


def _told(told: Told) -> dict[str, Any]:
    layers = told.get("block_count")
    full, local = told_rope(told), {"rope_type": "default", "rope_theta": short(told.get("rope.freq_base_swa"))}
    head = told.get("embedding_length") // told.get("attention.head_count")
    return {
        "model_type": "gemma3_text",
        **told_window(told, PERIOD),
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
        "query_pre_attn_scalar": head if layers == LAYERS_27B else told.get("attention.key_length"),
        "final_logit_softcapping": told.get("final_logit_softcapping") or None,
    }


# transformers multiplies by (1 + weight), llama.cpp by weight
GEMMA3 = Architecture(
    name="gemma3",
    classes=("Gemma3ForCausalLM",),
    keys=(
        *DECODER_KEYS,
        Key("attention.key_length", "head_dim"),
        Key("attention.value_length", "head_dim"),
        Key("rope.freq_base", _base("full_attention"), "float32"),
        Key("rope.freq_base_swa", _base("sliding_attention"), "float32"),
    ),
    rules=(
        Rule("model.embed_tokens"),
        Rule("model.norm", add=1.0),
        Rule("lm_head", required=False),
        Rule("model.layers.{i}.input_layernorm", add=1.0),
        Rule("model.layers.{i}.self_attn.q_proj"),
        Rule("model.layers.{i}.self_attn.k_proj"),
        Rule("model.layers.{i}.self_attn.v_proj"),
        Rule("model.layers.{i}.self_attn.o_proj"),
        Rule("model.layers.{i}.self_attn.q_norm", add=1.0),
        Rule("model.layers.{i}.self_attn.k_norm", add=1.0),
        Rule("model.layers.{i}.post_attention_layernorm", add=1.0),
        Rule("model.layers.{i}.pre_feedforward_layernorm", add=1.0),
        Rule("model.layers.{i}.post_feedforward_layernorm", add=1.0),
        Rule("model.layers.{i}.mlp.gate_proj"),
        Rule("model.layers.{i}.mlp.up_proj"),
        Rule("model.layers.{i}.mlp.down_proj"),
    ),
    reason=_reason,
    entries=_entries,
    told=_told,
)
