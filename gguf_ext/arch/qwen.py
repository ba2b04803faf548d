"""Qwen 2, 2.5 and 3: transformers `Qwen2ForCausalLM` → llama.cpp `qwen2`, `Qwen3ForCausalLM` → `qwen3`."""

from __future__ import annotations

from functools import partial

from gguf_ext.arch.decoder import decoder, decoder_rules
from gguf_ext.arch.rope import SCALED
from gguf_ext.arch.spec import Config, Rule, absent


def _reason(name: str, config: Config) -> str:
    if "sliding_attention" in (config.get("layer_types") or ()):
        return f"use_sliding_window does not exist in llama.cpp's {name}: only models without it"
    return absent(name, config, "attention_bias") if name == "qwen3" else ""


QWEN2 = decoder(
    "qwen2",
    "Qwen2ForCausalLM",
    decoder_rules(qkv_bias="required"),
    SCALED,
    reason=partial(_reason, "qwen2"),
    told=lambda told: {"model_type": "qwen2", "use_sliding_window": False},
)
QWEN3 = decoder(
    "qwen3",
    "Qwen3ForCausalLM",
    (
        *decoder_rules(),
        Rule("model.layers.{i}.self_attn.q_norm"),
        Rule("model.layers.{i}.self_attn.k_norm"),
    ),
    SCALED,
    reason=partial(_reason, "qwen3"),
    told=lambda told: {"model_type": "qwen3", "use_sliding_window": False},
)
