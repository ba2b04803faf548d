"""GPT-2: transformers `GPT2LMHeadModel` → llama.cpp `gpt2`. Its linears are Conv1D: float weights are [in, out]."""

from __future__ import annotations

from gguf_ext.arch.spec import GELU_TANH, Architecture, Config, Key, Rule


def _reason(config: Config) -> str:
    if config.get("activation_function") not in GELU_TANH:
        return f"activation_function={config.get('activation_function')!r} does not exist in llama.cpp's gpt2"
    if not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx"):
        return "scale_attn_weights, scale_attn_by_inverse_layer_idx: llama.cpp's gpt2 scales by the root of the head"
    return ""


GPT2 = Architecture(
    name="gpt2",
    classes=("GPT2LMHeadModel",),
    keys=(
        Key("vocab_size", "vocab_size"),
        Key("context_length", "max_position_embeddings"),
        Key("embedding_length", "hidden_size"),
        Key("block_count", "num_hidden_layers"),
        Key("attention.head_count", "num_attention_heads"),
        Key("attention.layer_norm_epsilon", "layer_norm_epsilon", "float32"),
        Key("feed_forward_length", lambda config: config.get("n_inner") or 4 * int(config["hidden_size"])),
    ),
    rules=(
        Rule("transformer.wte"),
        Rule("transformer.wpe"),
        Rule("transformer.ln_f", bias="required"),
        Rule("lm_head", required=False),
        Rule("transformer.h.{i}.ln_1", bias="required"),
        Rule("transformer.h.{i}.attn.c_attn", transposed=True, bias="required"),
        Rule("transformer.h.{i}.attn.c_proj", transposed=True, bias="required"),
        Rule("transformer.h.{i}.ln_2", bias="required"),
        Rule("transformer.h.{i}.mlp.c_fc", transposed=True, bias="required"),
        Rule("transformer.h.{i}.mlp.c_proj", transposed=True, bias="required"),
    ),
    reason=_reason,
    told=lambda told: {"model_type": "gpt2", "n_inner": told.get("feed_forward_length")},
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",),  # the causal mask, in older checkpoints
)
