"""Bloom: transformers `BloomForCausalLM` → llama.cpp `bloom` (ALiBi instead of positions)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gguf_ext.arch.spec import Architecture, Config, Key, Rule, absent, head_width

CONTEXT = 2048
"""Bloom's own training length: ALiBi sets no limit, and not every config.json has one."""


def _reason(config: Config) -> str:
    if reason := absent("bloom", config, "apply_residual_connection_post_layernorm"):
        return reason
    if config.get("slow_but_exact") and int(config.get("pretraining_tp") or 1) > 1:
        return (
            "slow_but_exact with pretraining_tp leaves out biases in transformers, llama.cpp's bloom adds them: "
            "set slow_but_exact to false"
        )
    return ""


def _context(config: Config) -> Any:
    return config.get("seq_length") or config.get("max_position_embeddings") or CONTEXT


def qkv_order(config: Config) -> Tensor:
    """int64 [3 · hidden]: Bloom stores q, k, v of head 0, then those of head 1, …; the file all q, all k, all v."""
    heads, width = int(config["num_attention_heads"]), head_width(config)
    return torch.arange(3 * heads * width).view(heads, 3, width).transpose(0, 1).reshape(-1)


BLOOM = Architecture(
    name="bloom",
    classes=("BloomForCausalLM",),
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("embedding_length", "hidden_size"),
        Key("block_count", "num_hidden_layers"),
        Key("attention.head_count", "num_attention_heads"),
        Key("attention.head_count_kv", "num_attention_heads"),
        Key("attention.layer_norm_epsilon", "layer_norm_epsilon", "float32"),
        Key("context_length", _context),
        Key("feed_forward_length", lambda config: 4 * int(config["hidden_size"])),
    ),
    rules=(
        Rule("transformer.word_embeddings"),
        Rule("transformer.word_embeddings_layernorm", "token_embd_norm", bias="required"),
        Rule("transformer.ln_f", bias="required"),
        Rule("lm_head", required=False),
        Rule("transformer.h.{i}.input_layernorm", bias="required"),
        Rule("transformer.h.{i}.self_attention.query_key_value", rows=qkv_order, bias="required"),
        Rule("transformer.h.{i}.self_attention.dense", bias="required"),
        Rule("transformer.h.{i}.post_attention_layernorm", "blk.{i}.ffn_norm", bias="required"),
        Rule("transformer.h.{i}.mlp.dense_h_to_4h", bias="required"),
        Rule("transformer.h.{i}.mlp.dense_4h_to_h", bias="required"),
    ),
    reason=_reason,
    told=lambda told: {"model_type": "bloom", "seq_length": told.get("context_length")},
)
