"""Qwen 2, 2.5 and 3: transformers `Qwen2ForCausalLM` → llama.cpp `qwen2`, `Qwen3ForCausalLM` → `qwen3`."""

from __future__ import annotations

from gguf_ext.arch.decoder import decoder_rules, why_not
from gguf_ext.arch.rope import SCALED, rope_entries, rope_note
from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Entry, Rule


def _reason(name: str, config: Config) -> str:
    if "sliding_attention" in (config.get("layer_types") or ()):
        return f"use_sliding_window does not exist in llama.cpp's {name}: only models without it"
    if name == "qwen3" and config.get("attention_bias"):
        return "attention_bias does not exist in llama.cpp's qwen3: only models without it"
    return why_not(name, config, SCALED)


def _reason2(config: Config) -> str:
    return _reason("qwen2", config)


def _reason3(config: Config) -> str:
    return _reason("qwen3", config)


def _entries2(config: Config) -> list[Entry]:
    return rope_entries("qwen2", config)


def _entries3(config: Config) -> list[Entry]:
    return rope_entries("qwen3", config)


QWEN2 = Architecture(
    name="qwen2",
    classes=("Qwen2ForCausalLM",),
    keys=DECODER_KEYS,
    rules=decoder_rules(qkv_bias="required"),
    reason=_reason2,
    entries=_entries2,
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
    reason=_reason3,
    entries=_entries3,
    note=rope_note,
)
