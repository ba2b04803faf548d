"""What Llama, Mistral, Qwen and Phi have in common: RMS norms, rotary positions, a gated MLP. `decoder` makes their
tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from gguf_ext.arch.rope import ROPE_KEYS, rope_constants, rope_note, rope_reason, scaling_entries, told_rope
from gguf_ext.arch.spec import DECODER_KEYS, SILU, Architecture, Bias, Config, Key, Rule, Told, rotary


def decoder_rules(
    *, rotated: bool = False, qkv_bias: Bias = "none", bias: Bias = "none", norm_bias: Bias = "none"
) -> tuple[Rule, ...]:
    """The modules of a Llama-shaped model. rotated: whether llama.cpp wants q and k in its own rotary order. bias: of
    the output projection and the MLP."""
    q, k = (rotary("num_attention_heads"), rotary("num_key_value_heads")) if rotated else (None, None)
    layer = "model.layers.{i}"

    return (
        Rule("model.embed_tokens"),
        Rule("model.norm", bias=norm_bias),
        Rule("lm_head", required=False),
        Rule(f"{layer}.input_layernorm", bias=norm_bias),
        Rule(f"{layer}.self_attn.q_proj", rows=q, bias=qkv_bias),
        Rule(f"{layer}.self_attn.k_proj", rows=k, bias=qkv_bias),
        Rule(f"{layer}.self_attn.v_proj", bias=qkv_bias),
        Rule(f"{layer}.self_attn.o_proj", bias=bias),
        Rule(f"{layer}.post_attention_layernorm", bias=norm_bias),
        Rule(f"{layer}.mlp.gate_proj", bias=bias),
        Rule(f"{layer}.mlp.up_proj", bias=bias),
        Rule(f"{layer}.mlp.down_proj", bias=bias),
    )


def decoder(
    name: str,
    model_class: str,
    rules: tuple[Rule, ...],
    rope_types: Sequence[str],
    *,
    windowed: bool = False,
    parts: bool = False,
    reason: Callable[[Config], str] = lambda config: "",
    told: Callable[[Told], dict[str, Any]] | None = None,
) -> Architecture:
    """The table of one such class.

    name: llama.cpp's.
    model_class: transformers'.
    rules: the modules, in the order of the file.
    rope_types: the kinds of rotary positions that llama.cpp's graph has.
    windowed: whether the class may have a sliding window, which llama.cpp's graph lacks: the file's context ends there.
    parts: whether llama.cpp's graph may rotate a part of each head.
    reason: further reasons why a model cannot be exported, see `Architecture.reason`.
    told: see `Architecture.told`; what all of them have is added.
    """
    return Architecture(
        name=name,
        classes=(model_class,),
        keys=(*(WINDOWED_KEYS if windowed else DECODER_KEYS), *ROPE_KEYS),
        rules=rules,
        reason=lambda config: reason(config) or why_not(name, config, rope_types, parts),
        entries=lambda config: scaling_entries(name, config["rope_parameters"], config),
        constants=rope_constants,
        note=decoder_note if windowed else rope_note,
        told=None if told is None else lambda said: {**_told(said), **told(said)},
    )


def _told(told: Told) -> dict[str, Any]:
    return {
        "head_dim": told.get("attention.key_length"),
        "max_position_embeddings": told.get("context_length"),
        "rope_parameters": told_rope(told),
    }


def why_not(name: str, config: Config, rope_types: Sequence[str], parts: bool) -> str:
    """A line why llama.cpp's architecture `name` cannot run the model, "" where it can; arguments as of `decoder`."""
    rope = config["rope_parameters"]
    if reason := rope_reason(name, rope, rope_types):
        return reason
    if not parts and float(rope.get("partial_rotary_factor") or 1) != 1:
        return f"partial_rotary_factor has no table for {name}: only models that rotate whole heads"
    if config.get("hidden_act") not in SILU:
        return f"hidden_act={config.get('hidden_act')!r} does not exist in llama.cpp's {name}: only silu"
    size = config.get("sliding_window")
    if size is not None and size < 1:
        return f"sliding_window={size} is no window: give 1 or more, or null for none"
    return ""


def window(config: Config) -> int | None:
    """The sliding window, where the context is longer than it. llama.cpp's llama and phi3 attend to everything."""
    size = config.get("sliding_window")
    return int(size) if size and int(size) < int(config["max_position_embeddings"]) else None


WINDOWED_KEYS = (
    *(key for key in DECODER_KEYS if key.name != "context_length"),
    Key("context_length", lambda config: window(config) or config["max_position_embeddings"]),
)
"""Of models with a window: the context is that up to which llama.cpp, which has no window here, computes the same."""


def decoder_note(config: Config) -> str:
    """For `Architecture.note`: what the user must know of the window and of the rotary positions."""
    size = window(config)
    windowed = (
        f"sliding_window={size} of the model does not exist in llama.cpp: the file's context is {size} tokens, up to "
        f"which both compute the same"
        if size
        else ""
    )
    return "; ".join(filter(None, (windowed, rope_note(config))))
