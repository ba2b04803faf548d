"""Qwen 2, 2.5 and 3: transformers `Qwen2ForCausalLM` → llama.cpp `qwen2`, `Qwen3ForCausalLM` → `qwen3`."""

from __future__ import annotations

from functools import partial

from gguf_ext.arch.decoder import decoder_rules, why_not
from gguf_ext.arch.rope import SCALED, rope_entries, rope_note
from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Rule


def _reason(name: str, config: Config) -> str:
    if "sliding_attention" in (config.get("layer_types") or ()):
        return f"use_sliding_window does not exist in llama.cpp's {name}: only models without it"
    if name == "qwen3" and config.get("attention_bias"):
        return "attention_bias does not exist in llama.cpp's qwen3: only models without it"
    return why_not(name, config, SCALED)


QWEN2 = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    keys=DECODER_KEYS,
    rules=decoder_rules(qkv_bias="required"),
    reason=partial(_reason, "qwen2"),
    entries=partial(rope_entries, "qwen2"),
    note=rope_note,
)
QWEN3 = Architecture(
    name="qwen3",
    classes=("Qwen3ForCausalLM",),
    keys=DECODER_KEYS,
    rules=(
        *decoder_rules(),
        Rule("model.layers.{i}.self_attn.q_norm"),
        Rule("model.layers.{i}.self_attn.k_norm"),
    ),
    reason=partial(_reason, "qwen3"),
    entries=partial(rope_entries, "qwen3"),
    note=rope_note,
)
