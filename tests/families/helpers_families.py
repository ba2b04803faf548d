"""Every decoder family of the installed transformers, tiny: two blocks, random weights, made from its config class.

The widths are divided by groups of 32. `COMMON` holds for all, where a family's configuration has such a field;
`SPECIAL` is what single families need beside it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

TOKENIZERS = Path(__file__).parents[1] / "tokenizers"
WIDTH, VOCABULARY = 64, 640

OTHERS = {
    "bart", "bert", "bert-generation", "big_bird", "bigbird_pegasus", "blenderbot", "blenderbot-small", "blt",
    "camembert", "cpmant", "ctrl", "data2vec-text", "electra", "emu3", "ernie", "fuyu", "git", "got_ocr2", "marian",
    "mbart", "megatron-bert", "mllama", "moshi", "musicgen", "musicgen_melody", "mvp", "pegasus", "phi4_multimodal",
    "plbart", "prophetnet", "reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "trocr",
    "whisper", "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod",
}  # fmt: skip
"""Of transformers' causal language models, those that are no decoders of text alone: encoders, encoders with decoders,
wrappers of other modalities."""

DECODERS = [family for family in CAUSAL if family not in OTHERS]
"""Every decoder family of the installed transformers, by `model_type`."""

COMMON: dict[str, Any] = {
    # the usual names, and those of older families
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "model_dim", "dim", "attention_hidden_size"), WIDTH),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "feed_forward_size"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_head_kv"), 2),
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 256),
    **{"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    # mixtures of experts
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("n_group", "topk_group", "num_shared_experts", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 1),
    # latent attention
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "index_head_dim"), 32),
    **{"qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "qk_head_dim": 32, "index_n_heads": 2},
    "index_topk": 16,
    # state spaces and linear attention
    **{"state_size": 8, "conv_kernel": 4, "time_step_rank": 4},
    **{"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_expand": 2},
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_mamba_heads"), 1),
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    # windows
    "sliding_window": 32,
}
"""Field → value; a field that the configuration does not have is left out."""

DEFAULT = object()
"""Stands for the value that the family's own configuration has."""

HALF_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
LATENT = {"num_key_value_heads": 4, "qk_head_dim": DEFAULT}

SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3",
         "longcat_flash", "youtu"),
        LATENT,
    ),
    "codegen": {"rotary_dim": 16},
    "gptj": {"rotary_dim": 16},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3n_text": {
        "layer_types": ["full_attention", "full_attention"], "num_kv_shared_layers": 0, "laurel_rank": 32,
        "vocab_size_per_layer_input": 640, "hidden_size_per_layer_input": 32, "activation_sparsity_pattern": [0.0, 0.0],
    },
    "gemma4_text": {"vocab_size_per_layer_input": 640, "hidden_size_per_layer_input": 32},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dots3_note_text": {"num_key_value_heads": 4},
    "reformer": {"is_decoder": True},
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text"), HALF_LINEAR),
    "zamba": {
        "num_hidden_layers": 3, "attention_hidden_size": 128, "attention_head_dim": 32,
        "layers_block_type": ["mamba", "hybrid", "hybrid"],
    },
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"], "num_mem_blocks": 1,
        "mamba_headdim": 32, "mamba_ngroups": 1, "n_mamba_heads": 4, "num_key_value_heads": 4, "mamba_expand": 2,
        "attention_head_dim": 32, "attention_hidden_size": 128, "adapter_rank": 32,
    },
    "zaya": {"num_experts_per_tok": 1},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
}  # fmt: skip
"""Family → fields that differ from `COMMON`."""


def config_of(family: str) -> Any:
    """The tiny configuration of a family, by its `model_type`."""
    return tiny(CONFIG_MAPPING[family], SPECIAL.get(family, {}))


def tiny(kind: Any, special: dict[str, Any]) -> Any:
    known = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__dataclass_fields__", {}))
    known -= set(getattr(kind, "attribute_map", {}))
    fields = {name: value for name, value in COMMON.items() if name in known}
    for name, value in special.items():
        if value is DEFAULT:
            fields.pop(name, None)
        else:
            fields[name] = value
    return kind(**fields)


def model_of(family: str, config: Any = None) -> Any:
    """A tiny model of a family, float32, in evaluation mode; always the same weights."""
    torch.manual_seed(0)
    auto = AutoModelForCausalLM if family in CAUSAL else AutoModelForImageTextToText
    return auto.from_config(config_of(family) if config is None else config, dtype=torch.float32).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One of 640 tokens, for any family."""
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZERS / "byte-level.json"), **names)


LARGEST = 12_000_000
"""Weights of a model that is still tiny: some configurations have parts that nothing here makes smaller."""


def buildable(family: str) -> bool:
    """Whether the family is built, and tiny: some need packages that are not installed, or have required parts."""
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in model_of(family).parameters()) <= LARGEST
    except Exception:
        return False
