"""Families that differ from Llama in a factor, a bias, an activation or an order: one row each."""

from __future__ import annotations

from gguf_ext.arch.decoder import decoder_rules
from gguf_ext.arch.family import RMS_KEYS, family
from gguf_ext.arch.rope import FACTORED, SCALED
from gguf_ext.arch.spec import SILU, Config, Key, Rule
from gguf_ext.arch.windows import FIELDS, told_window, window_entries, window_reason

LAYER = "model.layers.{i}"


def _without(rules: tuple[Rule, ...], *ends: str) -> tuple[Rule, ...]:
    return tuple(rule for rule in rules if not rule.source.endswith(ends))


# --- Granite: four factors ---

GRANITE = family(
    "granite", "GraniteForCausalLM", "granite",
    decoder_rules(rotated=True, qkv_bias="optional", bias="optional"),
    keys=(
        *RMS_KEYS,
        Key("attention.scale", "attention_multiplier", "float32"),
        Key("embedding_scale", "embedding_multiplier", "float32"),
        Key("residual_scale", "residual_multiplier", "float32"),
        Key("logit_scale", "logits_scaling", "float32"),
    ),
    rope=FACTORED,
    fixed={"hidden_act": SILU},
    biases={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"},
)  # fmt: skip

# --- SmolLM 3: every fourth layer without positions ---

STEP = 4
"""Fixed in llama.cpp's smollm3."""


def _rotated_layers(config: Config) -> str:
    layers = int(config["num_hidden_layers"])
    if [bool(one) for one in config["no_rope_layers"]] != [bool((layer + 1) % STEP) for layer in range(layers)]:
        return f"no_rope_layers={config['no_rope_layers']} is fixed to every {STEP}th layer in llama.cpp's smollm3"
    if set(config.get("layer_types") or ()) - {"full_attention"}:
        return "use_sliding_window does not exist in llama.cpp's smollm3: only models without it"
    return ""


SMOLLM3 = family(
    "smollm3", "SmolLM3ForCausalLM", "smollm3",
    decoder_rules(rotated=True),
    rope=SCALED,
    fixed={"hidden_act": SILU, "attention_bias": (False,), "mlp_bias": (False,), "use_sliding_window": (False,)},
    spoken=("no_rope_layers", "no_rope_layer_interval", *FIELDS),
    reason=_rotated_layers,
)  # fmt: skip

# --- Arcee: squared ReLU without a gate ---

ARCEE = family(
    "arcee", "ArceeForCausalLM", "arcee",
    _without(decoder_rules(rotated=True), "gate_proj"),
    rope=(*SCALED, "llama3"),
    fixed={"hidden_act": ("relu2",), "attention_bias": (False,), "mlp_bias": (False,)},
)  # fmt: skip

# --- Seed-OSS ---

SEED_OSS = family(
    "seed_oss", "SeedOssForCausalLM", "seed_oss",
    decoder_rules(qkv_bias="optional"),
    rope=SCALED,
    fixed={"hidden_act": SILU, "attention_out_bias": (False,), "mlp_bias": (False,)},
    biases={"attention_bias": "blk.0.attn_q.bias"},
)  # fmt: skip

# --- Ernie 4.5 rotates neighbours ---

ERNIE = family(
    "ernie4_5", "Ernie4_5ForCausalLM", "ernie4_5", decoder_rules(),
    rope=SCALED, fixed={"hidden_act": SILU, "use_bias": (False,)},
)  # fmt: skip

# --- Hunyuan: queries and keys are normed behind the rotation ---

HUNYUAN = family(
    "hunyuan-dense", "HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense",
    (*decoder_rules(), *(Rule(f"{LAYER}.self_attn.{name}_layernorm") for name in ("query", "key"))),
    rope=SCALED,
    fixed={"hidden_act": SILU, "attention_bias": (False,)},
)  # fmt: skip

# --- GLM 4: rotates half of each head, neighbours, gate and up in one ---

_GLM = (*_without(decoder_rules(qkv_bias="optional"), "gate_proj", "up_proj"), Rule(f"{LAYER}.mlp.gate_up_proj"))
_GLM_FIXED = {"hidden_act": SILU}
_GLM_BIASES = {"attention_bias": "blk.0.attn_q.bias"}
GLM = family(
    "chatglm", "GlmForCausalLM", "glm", _GLM,
    rope=SCALED, parts=True, fixed=_GLM_FIXED, biases=_GLM_BIASES,
)  # fmt: skip
GLM4 = family(
    "glm4", "Glm4ForCausalLM", "glm4",
    (*_GLM, *(Rule(f"{LAYER}.{name}_layernorm") for name in ("post_self_attn", "post_mlp"))),
    rope=SCALED, parts=True, fixed=_GLM_FIXED, biases=_GLM_BIASES,
)  # fmt: skip

# --- EXAONE 4: windows in the model of 64 layers alone ---

PERIOD, LAYERS_32B = 4, 64


def _exaone_windows(config: Config) -> str:
    large = int(config["num_hidden_layers"]) == LAYERS_32B
    if large or "sliding_attention" not in config["layer_types"]:
        return window_reason("exaone4", config, needed=large)
    return f"sliding_window exists in llama.cpp's exaone4 with {LAYERS_32B} layers alone: only models without it"


EXAONE4 = family(
    "exaone4", "Exaone4ForCausalLM", "exaone4",
    (
        *_without(decoder_rules(), "input_layernorm"),
        Rule(f"{LAYER}.post_feedforward_layernorm"),
        *(Rule(f"{LAYER}.self_attn.{name}_norm") for name in ("q", "k")),
    ),
    rope=(*SCALED, "llama3"),
    fixed={"hidden_act": SILU},
    spoken=FIELDS,
    reason=_exaone_windows,
    entries=lambda config: window_entries("exaone4", config, PERIOD),
    told=lambda told: {"sliding_window": None, **told_window(told, PERIOD)},
)  # fmt: skip
