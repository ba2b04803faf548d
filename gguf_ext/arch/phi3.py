"""Phi 3 and 4 (mini): transformers `Phi3ForCausalLM` → llama.cpp `phi3`, with q, k, v and gate, up fused in both."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gguf_ext.arch.decoder import rope_entries, why_not, window_note, windowed_context
from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Entry, Rule


def _reason(config: Config) -> str:
    return why_not("phi3", config, ("default", "longrope"), partial=True)


def _entries(config: Config) -> list[Entry]:
    entries = [windowed_context("phi3", config), *rope_entries("phi3", config)]
    if config["rope_parameters"]["rope_type"] == "longrope":
        entries.append(Entry("phi3.rope.scaling.original_context_length", _original(config), "uint32"))
        entries.append(Entry("phi3.rope.scaling.attn_factor", attention_factor(config), "float32"))
    return entries


def _original(config: Config) -> int:
    rope = config["rope_parameters"]
    return int(rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"])


def attention_factor(config: Config) -> float:
    """What LongRoPE multiplies queries and keys with: sqrt(1 + ln(longer) / ln(original)), longer = context / original
    (arXiv 2402.13753, section 3.3), or what the model says."""
    rope = config["rope_parameters"]
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    longer = float(rope.get("factor") or int(config["max_position_embeddings"]) / _original(config))
    return math.sqrt(1 + math.log(longer) / math.log(_original(config))) if longer > 1 else 1.0


def _constants(config: Config) -> dict[str, Tensor]:
    """What each rotary frequency is divided by, float32 [rotated / 2], in a long and in a short context."""
    rope = config["rope_parameters"]
    if rope["rope_type"] != "longrope":
        return {}
    return {
        f"rope_factors_{length}.weight": torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
        for length in ("long", "short")
    }


def _note(config: Config) -> str:
    if config["rope_parameters"]["rope_type"] != "longrope":
        return window_note(config)
    original = _original(config)
    return (
        f"LongRoPE: llama.cpp takes the long factors for every text where its context is above {original} tokens, "
        f"transformers only where the text is: for short texts open the file with context={original}"
    )


PHI3 = Architecture(
    name="phi3",
    classes=("Phi3ForCausalLM",),
    keys=tuple(key for key in DECODER_KEYS if key.name != "context_length"),
    rules=(
        Rule("model.embed_tokens", "token_embd"),
        Rule("model.norm", "output_norm"),
        Rule("lm_head", "output", required=False),
        Rule("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        Rule("model.layers.{i}.self_attn.qkv_proj", "blk.{i}.attn_qkv"),
        Rule("model.layers.{i}.self_attn.o_proj", "blk.{i}.attn_output"),
        Rule("model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        Rule("model.layers.{i}.mlp.gate_up_proj", "blk.{i}.ffn_up"),
        Rule("model.layers.{i}.mlp.down_proj", "blk.{i}.ffn_down"),
    ),
    reason=_reason,
    entries=_entries,
    constants=_constants,
    note=_note,
)
