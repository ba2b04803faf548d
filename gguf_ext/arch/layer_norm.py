"""Families with LayerNorms: StableLM, Phi 1 and 2, StarCoder 2, Nemotron, GPT-NeoX (Pythia) and Falcon: a row each."""

from __future__ import annotations

import torch
from torch import Tensor

from gguf_ext.arch.bloom import qkv_order
from gguf_ext.arch.decoder import decoder_note, decoder_rules, window
from gguf_ext.arch.family import family, layer_norm_keys
from gguf_ext.arch.rope import SCALED
from gguf_ext.arch.spec import GELU_TANH, SILU, Bias, Config, Key, Rule, Told, head_width

LAYER = "model.layers.{i}"
EXACT = "gelu"
TANH = (GELU_TANH[1], *GELU_TANH)


def exact_gelu(config: Config) -> str:
    """A note for models whose gelu is the exact one: llama.cpp has its approximation by tanh alone."""
    if config.get("hidden_act", config.get("activation", EXACT)) != EXACT:
        return ""
    return "gelu of the model is the exact one, llama.cpp's its tanh approximation: logits differ a little"


def _rules(
    mlp: tuple[str, ...], *, output: str = "o_proj", bias: Bias = "required", add: float = 0.0
) -> tuple[Rule, ...]:
    """Llama's names, with biases in the norms. mlp: the modules of the MLP. output: of the attention. bias: of all
    linear layers. add: to the weights of norms."""
    norms = ("input_layernorm", "post_attention_layernorm")
    return (
        Rule("model.embed_tokens"),
        Rule("model.norm", bias="required", add=add),
        Rule("lm_head", required=False),
        *(Rule(f"{LAYER}.{name}", bias="required", add=add) for name in norms),
        *(Rule(f"{LAYER}.self_attn.{name}", bias=bias) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
        *(Rule(f"{LAYER}.mlp.{name}", bias=bias) for name in mlp),
    )


STABLELM = family(
    "stablelm", "StableLmForCausalLM", "stablelm",
    decoder_rules(qkv_bias="optional", norm_bias="required"),
    keys=(*layer_norm_keys("layer_norm_eps"), Key("use_parallel_residual", "use_parallel_residual", "bool")),
    rope=SCALED, parts=True,
    fixed={"hidden_act": SILU, "qk_layernorm": (False,), "use_parallel_residual": (False,)},
    biases={"use_qkv_bias": "blk.0.attn_q.bias"},
    head="own",
)  # fmt: skip
NEMOTRON = family(
    "nemotron", "NemotronForCausalLM", "nemotron",
    _rules(("up_proj", "down_proj"), bias="optional", add=1.0),  # its LayerNorm1P multiplies by (1 + weight)
    keys=layer_norm_keys("norm_eps"),
    rope=SCALED, parts=True,
    fixed={"hidden_act": ("relu2",)},
    biases={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
    head="own",
)  # fmt: skip
STARCODER2 = family(
    "starcoder2", "Starcoder2ForCausalLM", "starcoder2",
    _rules(("c_fc", "c_proj")),
    keys=layer_norm_keys(
        "norm_epsilon",
        {"context_length": lambda config: window(config) or config["max_position_embeddings"]},
    ),
    rope=SCALED,
    fixed={"hidden_act": TANH, "use_bias": (True,)},
    spoken=("sliding_window", "max_position_embeddings"),
    note=decoder_note,
    told=lambda told: {"sliding_window": None},
)  # fmt: skip
PHI2 = family(
    "phi2", "PhiForCausalLM", "phi",
    (
        Rule("model.embed_tokens"),
        Rule("model.final_layernorm", bias="required"),
        Rule("lm_head", bias="required"),
        Rule(f"{LAYER}.input_layernorm", bias="required"),
        *(Rule(f"{LAYER}.self_attn.{name}", bias="required") for name in ("q_proj", "k_proj", "v_proj", "dense")),
        *(Rule(f"{LAYER}.mlp.{name}", bias="required") for name in ("fc1", "fc2")),
    ),
    keys=layer_norm_keys("layer_norm_eps"),
    rope=SCALED, parts=True,
    fixed={"hidden_act": TANH, "qk_layernorm": (False,)},
    head="own",
)  # fmt: skip

# --- q, k and v in one ---

NEOX = "gpt_neox.layers.{i}"
GPTNEOX = family(
    "gptneox", "GPTNeoXForCausalLM", "gpt_neox",
    (
        Rule("gpt_neox.embed_in"),
        Rule("gpt_neox.final_layer_norm", bias="required"),
        Rule("embed_out"),
        *(Rule(f"{NEOX}.{name}", bias="required") for name in ("input_layernorm", "post_attention_layernorm")),
        Rule(f"{NEOX}.attention.query_key_value", rows=qkv_order, bias="required"),
        *(Rule(f"{NEOX}.{n}", bias="required") for n in ("attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
    ),
    keys=(
        *layer_norm_keys("layer_norm_eps", {"attention.head_count_kv": "num_attention_heads"}),
        Key("use_parallel_residual", "use_parallel_residual", "bool"),
    ),
    rope=SCALED, parts=True,
    fixed={"hidden_act": (EXACT, *GELU_TANH), "attention_bias": (True,)},
    head="own",
    note=exact_gelu,
)  # fmt: skip


def _groups(config: Config) -> int:
    """Heads of keys and values."""
    if config["new_decoder_architecture"]:
        return int(config["num_kv_heads"])
    return 1 if config["multi_query"] else int(config["num_attention_heads"])


def falcon_order(config: Config) -> Tensor:
    """int64 [rows]: Falcon stores the queries of each group, its key, its value; the file all q, all k, all v."""
    heads, groups, width = int(config["num_attention_heads"]), _groups(config), head_width(config)
    rows = torch.arange((heads + 2 * groups) * width).view(groups, heads // groups + 2, width)
    return torch.cat([part.reshape(-1) for part in rows.split([heads // groups, 1, 1], 1)])


def _one_norm(config: Config) -> str:
    norms = config.get("num_ln_in_parallel_attn") or (2 if config["new_decoder_architecture"] else 1)
    return f"num_ln_in_parallel_attn={norms} has no table here: only models with one norm a block" if norms != 1 else ""


def _told_falcon(told: Told) -> dict[str, object]:
    groups, heads = told.get("attention.head_count_kv"), told.get("attention.head_count")
    return {
        "new_decoder_architecture": groups not in (1, heads),
        "multi_query": groups == 1,
        "num_kv_heads": groups,
        "num_ln_in_parallel_attn": 1,
        "ffn_hidden_size": told.get("feed_forward_length"),
    }


BLOCK = "transformer.h.{i}"
FALCON = family(
    "falcon", "FalconForCausalLM", "falcon",
    (
        Rule("transformer.word_embeddings"),
        Rule("transformer.ln_f", bias="required"),
        Rule("lm_head", required=False),
        Rule(f"{BLOCK}.input_layernorm", bias="required"),
        Rule(f"{BLOCK}.self_attention.query_key_value", rows=falcon_order),
        *(Rule(f"{BLOCK}.{name}") for name in ("self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
    ),
    keys=layer_norm_keys(
        "layer_norm_epsilon",
        {"feed_forward_length": "ffn_hidden_size", "attention.head_count_kv": _groups},
    ),
    rope=SCALED,
    fixed={"activation": (EXACT, *GELU_TANH), "alibi": (False,), "parallel_attn": (True,), "bias": (False,)},
    spoken=("new_decoder_architecture", "multi_query", "num_kv_heads", "num_ln_in_parallel_attn"),
    reason=_one_norm,
    told=_told_falcon,
    note=exact_gelu,
)  # fmt: skip
