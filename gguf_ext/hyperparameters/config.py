"""What a configuration says of the hyper-parameters that llama.cpp's graphs read, under llama.cpp's names.

Names and rules are those of llama.cpp's converter (conversion/base.py, `TextModel.set_gguf_parameters`, and the classes
of Granite, Gemma 2, Command R, OLMo, StableLM and MPT). A table of `gguf_ext.arch` says more exactly what its class
needs; this serves models without one, and entries that a table leaves out because its graph does not read them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gguf_ext.arch.rope import FACTORED, scaling_entries
from gguf_ext.arch.spec import Config

CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length", "seq_length")
NAMES = {
    "vocab_size": ("vocab_size",),
    "context_length": CONTEXT,
    "embedding_length": ("hidden_size", "n_embd", "d_model"),
    "block_count": ("num_hidden_layers", "n_layer", "n_layers"),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_hidden_size"),
    "attention.head_count": ("num_attention_heads", "n_head", "n_heads"),
    "attention.head_count_kv": ("num_key_value_heads", "n_kv_heads", "num_kv_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.clamp_kqv": ("clip_qkv",),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok", "num_experts_per_token"),
}
"""llama.cpp's name → the names that configurations have for it."""
OFF = {"attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv", "expert_count", "expert_used_count"}
"""What a configuration that says null has none of."""


def counterparts(config: Config) -> dict[str, Any]:
    """Key without the architecture's name → value, of every entry that the configuration speaks of."""
    found: dict[str, Any] = {}
    for name, sources in NAMES.items():
        source = next((one for one in sources if one in config), None)
        value = None if source is None else config[source]
        if value is not None and not isinstance(value, (list, dict)):
            found[name] = value
        elif source is not None and name in OFF:
            found[name] = 0
    found |= dict(_window(config))
    found |= dict(_rope(config))
    return found


ROPE = {"rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor", "rotary_dim"}
WINDOW = {"sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern", "layer_types"}


def sources_of(config: Config) -> set[str]:
    """The fields of the configuration that `counterparts` looks at."""
    named = {source for sources in NAMES.values() for source in sources}
    return (named | ROPE | WINDOW) & {*config}


def has_window(config: Config) -> bool:
    """Whether a layer of the model attends to less than its context."""
    size, context = config.get("sliding_window"), value_of(config, "context_length")
    if not size or config.get("use_sliding_window") is False or (context and int(size) >= int(context)):
        return False
    kinds = config.get("layer_types")
    return not kinds or "sliding_attention" in kinds


def value_of(config: Config, name: str) -> Any:
    """What the configuration says of llama.cpp's `name`, None where it says nothing, or 0."""
    return next((config[source] for source in NAMES[name] if config.get(source)), None)


def _window(config: Config) -> Iterator[tuple[str, Any]]:
    if config.get("sliding_window") is not None:
        yield "attention.sliding_window", config["sliding_window"]
    if kinds := config.get("layer_types"):
        yield "attention.sliding_window_pattern", [kind == "sliding_attention" for kind in kinds]


def rope_of(config: Config) -> dict[str, Any] | None:
    """The rotary parameters of layers that see the whole context, old and new names alike; None without rotation."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if rope is None and config.get("rope_theta") is None:
        return None
    rope = dict(rope or {})
    rope = dict(rope.get("full_attention") or rope)
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    for name in ("rope_theta", "partial_rotary_factor"):
        if rope.get(name) is None and config.get(name) is not None:
            rope[name] = config[name]
    return rope


def _rope(config: Config) -> Iterator[tuple[str, Any]]:
    rope = rope_of(config)
    if rope is None:
        return

    if rope.get("rope_theta") is not None:
        yield "rope.freq_base", float(rope["rope_theta"])
    local = (config.get("rope_parameters") or {}).get("sliding_attention")
    if isinstance(local, Mapping) and local.get("rope_theta") is not None:
        yield "rope.freq_base_swa", float(local["rope_theta"])

    width = _head_width(config)
    part = rope.get("partial_rotary_factor")
    if width is not None:
        yield "rope.dimension_count", int(width * float(part)) if part else int(config.get("rotary_dim") or width)

    scaling = {"type": "none", "factor": 1.0, "attn_factor": 1.0}
    if rope["rope_type"] in FACTORED:
        whole = {"max_position_embeddings": value_of(config, "context_length"), **config}
        for entry in scaling_entries("llama", rope, whole):
            scaling[entry.key.removeprefix("llama.rope.scaling.")] = entry.value
    for name, value in scaling.items():
        yield f"rope.scaling.{name}", value


def _head_width(config: Config) -> int | None:
    if config.get("head_dim"):
        return int(config["head_dim"])
    width, heads = value_of(config, "embedding_length"), value_of(config, "attention.head_count")
    return int(width) // int(heads) if width and heads else None
