"""Gemma 1 and 2: transformers `GemmaForCausalLM` → llama.cpp `gemma`, `Gemma2ForCausalLM` → `gemma2`. transformers
multiplies by (1 + weight) in norms, llama.cpp by weight; the head is the embedding."""

from __future__ import annotations

from gguf_ext.arch.family import RMS_KEYS, family
from gguf_ext.arch.rope import SCALED
from gguf_ext.arch.spec import GELU_TANH, Architecture, Config, Key, Rule, Told
from gguf_ext.arch.windows import FIELDS, told_window, window_entries, window_reason

PERIOD = 2
"""llama.cpp's default: every second layer of Gemma 2 sees the whole context."""
LAYERS_27B = 46
"""By which llama.cpp knows the 27B model, whose attention is scaled differently (gemma2.cpp)."""
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
TANH = ("gelu_pytorch_tanh", *GELU_TANH)
FIXED = {"attention_bias": (False,), "use_bidirectional_attention": (None, False)}
LAYER = "model.layers.{i}"


def _rules(*norms: str) -> tuple[Rule, ...]:
    return (
        Rule("model.embed_tokens"),
        Rule("model.norm", add=1.0),
        Rule("lm_head", "output", required=False),
        *(Rule(f"{LAYER}.{norm}", add=1.0) for norm in ("input_layernorm", "post_attention_layernorm", *norms)),
        *(Rule(f"{LAYER}.self_attn.{name}_proj") for name in ("q", "k", "v", "o")),
        *(Rule(f"{LAYER}.mlp.{name}_proj") for name in ("gate", "up", "down")),
    )


def _scalar(layers: int, hidden: int, heads: int, head: int) -> int:
    """1 / the square of what llama.cpp multiplies queries with."""
    return hidden // heads if layers == LAYERS_27B else head


def _reason2(config: Config) -> str:
    sizes = [int(config[name]) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim")]
    if config["query_pre_attn_scalar"] != (scalar := _scalar(*sizes)):
        return f"query_pre_attn_scalar={config['query_pre_attn_scalar']} is fixed to {scalar} in llama.cpp's gemma2"
    for cap in CAPS:
        if not (config.get(cap) or 0) > 0:
            return f"{cap}={config.get(cap)} does not exist in llama.cpp's gemma2: only models with a soft cap"
    return window_reason("gemma2", config, needed=True)


def _told2(told: Told) -> dict[str, object]:
    names = ("block_count", "embedding_length", "attention.head_count", "attention.key_length")
    return {**told_window(told, PERIOD), "query_pre_attn_scalar": _scalar(*(told.get(name) for name in names))}


GEMMA: Architecture = family(
    "gemma", "GemmaForCausalLM", "gemma", _rules(),
    rope=SCALED,
    fixed={"hidden_act": TANH, **FIXED},
    head="tied",
)  # fmt: skip
GEMMA2: Architecture = family(
    "gemma2", "Gemma2ForCausalLM", "gemma2", _rules("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    keys=(*RMS_KEYS, *(Key(cap, cap, "float32") for cap in CAPS)),
    rope=SCALED,
    fixed={"hidden_activation": TANH, **FIXED},
    spoken=("query_pre_attn_scalar", *FIELDS),
    head="tied",
    reason=_reason2,
    entries=lambda config: window_entries("gemma2", config, PERIOD),
    told=_told2,
)  # fmt: skip
