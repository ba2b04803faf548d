"""Llama 1, 2 and 3: transformers `LlamaForCausalLM` → llama.cpp `llama`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Entry, Rule

ROPE_TYPES = ("default", "linear", "llama3")


def _reason(config: Config) -> str:
    rope = config["rope_parameters"]["rope_type"]
    if rope not in ROPE_TYPES:
        return f"rope_type={rope!r} has no table for llama: use one of {', '.join(ROPE_TYPES)}"
    if float(config["rope_parameters"].get("partial_rotary_factor") or 1) != 1:
        return "partial_rotary_factor has no table for llama: only models that rotate whole heads"
    if config.get("hidden_act") != "silu":
        return f"hidden_act={config.get('hidden_act')!r} does not exist in llama.cpp's llama: only silu"
    return ""


def _entries(config: Config) -> list[Entry]:
    rope = config["rope_parameters"]
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    entries = [
        Entry("llama.rope.dimension_count", head, "uint32"),
        Entry("llama.attention.key_length", head, "uint32"),
        Entry("llama.attention.value_length", head, "uint32"),
        Entry("llama.rope.freq_base", float(rope["rope_theta"]), "float32"),
    ]
    if rope["rope_type"] == "linear":
        entries.append(Entry("llama.rope.scaling.type", "linear", "string"))
        entries.append(Entry("llama.rope.scaling.factor", float(rope["factor"]), "float32"))
    return entries


def _constants(config: Config) -> dict[str, Tensor]:
    rope = config["rope_parameters"]
    if rope["rope_type"] != "llama3":
        return {}
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return {"rope_freqs.weight": llama3_rope_factors(head, rope)}


def llama3_rope_factors(head: int, rope: Config) -> Tensor:
    """float32 [head / 2]: what each rotary frequency is divided by (llama.cpp's `rope_freqs`).

    Llama 3.1's rule: wavelengths above `original / low_freq_factor` are stretched by `factor`, those below
    `original / high_freq_factor` are left alone, and the frequencies between are interpolated.
    """
    factor, low, high = float(rope["factor"]), float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    original = float(rope["original_max_position_embeddings"])
    frequency = float(rope["rope_theta"]) ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
    turns = original * frequency / (2 * math.pi)  # how often the original context turns this frequency
    smooth = ((turns - low) / (high - low)).clamp(0, 1)  # 0: stretched, 1: as it was
    return (1 / ((1 - smooth) / factor + smooth)).to(torch.float32)


LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM",),
    keys=DECODER_KEYS,
    rules=(
        Rule("model.embed_tokens", "token_embd"),
        Rule("model.norm", "output_norm"),
        Rule("lm_head", "output", required=False),
        Rule("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        Rule("model.layers.{i}.self_attn.q_proj", "blk.{i}.attn_q", heads="num_attention_heads"),
        Rule("model.layers.{i}.self_attn.k_proj", "blk.{i}.attn_k", heads="num_key_value_heads"),
        Rule("model.layers.{i}.self_attn.v_proj", "blk.{i}.attn_v"),
        Rule("model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
        Rule("model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        Rule("model.layers.{i}.mlp.gate_proj", "blk.{i}.ffn_gate"),
        Rule("model.layers.{i}.mlp.up_proj", "blk.{i}.ffn_up"),
        Rule("model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
    ),
    reason=_reason,
    entries=_entries,
    constants=_constants,
)
