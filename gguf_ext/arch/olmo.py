"""OLMo 1, 2 and 3: transformers `OlmoForCausalLM` → llama.cpp `olmo`, `Olmo2ForCausalLM` and `Olmo3ForCausalLM` →
`olmo2`, which takes windows as an option. OLMo 1 has norms without weights, the others norms behind the layers."""

from __future__ import annotations

from typing import Any

from gguf_ext.arch.decoder import decoder_rules
from gguf_ext.arch.family import RMS_KEYS, family, layer_norm_keys
from gguf_ext.arch.rope import ROPE_KEYS, SCALED, rope_reason, scaling_entries, told_rope
from gguf_ext.arch.spec import SILU, Config, Entry, Key, Rule, Told, short
from gguf_ext.arch.windows import FIELDS, told_window, window_entries, window_reason

PERIOD = 4
"""llama.cpp's default: every fourth layer of OLMo 3 sees the whole context."""
FIXED = {"hidden_act": SILU, "attention_bias": (False,)}
LAYER = "model.layers.{i}"
RULES2 = (
    *(rule for rule in decoder_rules() if not rule.source.endswith(("input_layernorm", "post_attention_layernorm"))),
    *(Rule(f"{LAYER}.{name}") for name in ("post_attention_layernorm", "post_feedforward_layernorm")),
    *(Rule(f"{LAYER}.self_attn.{name}_norm") for name in ("q", "k")),
)


def _clip(config: Config) -> list[Entry]:
    clip = config.get("clip_qkv")
    return [Entry("olmo.attention.clamp_kqv", float(clip), "float32")] if clip else []


OLMO = family(
    "olmo", "OlmoForCausalLM", "olmo",
    tuple(rule for rule in decoder_rules(rotated=True) if "norm" not in rule.source),
    keys=layer_norm_keys(lambda config: 1e-5),  # OlmoLayerNorm
    rope=SCALED,
    fixed=FIXED,
    spoken=("clip_qkv",),
    entries=_clip,
    told=lambda told: {"clip_qkv": short(told.get("attention.clamp_kqv")) or None},
)  # fmt: skip
OLMO2 = family(
    "olmo2", "Olmo2ForCausalLM", "olmo2", RULES2,
    rope=SCALED, fixed=FIXED, head="own",
    reads=lambda told: not told.get("attention.sliding_window"),
)  # fmt: skip


# --- OLMo 3 ---


def _told3(told: Told) -> dict[str, Any]:
    full = told_rope(told)
    local = {"rope_type": "default", "rope_theta": short(told.get("rope.freq_base_swa"))}
    return {**told_window(told, PERIOD), "rope_parameters": {"full_attention": full, "sliding_attention": local}}


def _ropes(config: Config) -> tuple[Config, Config]:
    """The rotary parameters of layers that see the whole context, and of those with a window."""
    rope = config["rope_parameters"]
    if "full_attention" in rope:
        return rope["full_attention"], rope["sliding_attention"]
    return rope, {"rope_type": "default", "rope_theta": rope["rope_theta"]}  # of transformers before 5.20


def _reason3(config: Config) -> str:
    full, local = _ropes(config)
    if reason := rope_reason("olmo2", full, SCALED) or rope_reason("olmo2", local, ("default",)):
        return reason
    return window_reason("olmo2", config, needed=True)


def _entries3(config: Config) -> list[Entry]:
    full, local = _ropes(config)
    entries = scaling_entries("olmo2", full, config) + window_entries("olmo2", config, PERIOD)
    if local["rope_theta"] != full["rope_theta"]:
        entries.append(Entry("olmo2.rope.freq_base_swa", float(local["rope_theta"]), "float32"))
    return entries


OLMO3 = family(
    "olmo2", "Olmo3ForCausalLM", "olmo3", RULES2,
    keys=(
        *RMS_KEYS,
        *(key for key in ROPE_KEYS if key.name != "rope.freq_base"),
        Key("rope.freq_base", lambda config: _ropes(config)[0]["rope_theta"], "float32"),
    ),
    fixed=FIXED,
    spoken=("rope_parameters", "head_dim", *FIELDS),
    head="own",
    reason=_reason3,
    entries=_entries3,
    told=_told3,
    reads=lambda told: bool(told.get("attention.sliding_window")),
)  # fmt: skip
