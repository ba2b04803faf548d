"""Command R and R7B: transformers `CohereForCausalLM` → llama.cpp `command-r`, `Cohere2ForCausalLM` → `cohere2`. Both
rotate neighbours, so no row moves; attention and MLP stand side by side behind one LayerNorm."""

from __future__ import annotations

from gguf_ext.arch.decoder import decoder_rules
from gguf_ext.arch.family import family, layer_norm_keys
from gguf_ext.arch.rope import SCALED
from gguf_ext.arch.spec import SILU, Key, Rule
from gguf_ext.arch.windows import FIELDS, told_window, window_entries, window_reason

PERIOD = 4
KEYS = (*layer_norm_keys("layer_norm_eps"), Key("logit_scale", "logit_scale", "float32"))
RULES = (
    *(rule for rule in decoder_rules() if "post_attention" not in rule.source and rule.source != "lm_head"),
    Rule("lm_head", "output", required=False),
)
FIXED = {"hidden_act": SILU, "attention_bias": (False,)}

COHERE = family(
    "command-r", "CohereForCausalLM", "cohere", RULES,
    keys=KEYS, rope=SCALED, fixed={**FIXED, "use_qk_norm": (False,)}, head="tied",
)  # fmt: skip
COHERE2 = family(
    "cohere2", "Cohere2ForCausalLM", "cohere2", RULES,
    keys=KEYS,
    rope=SCALED,
    fixed=FIXED,
    spoken=FIELDS,
    head="tied",
    reason=lambda config: window_reason("cohere2", config, needed=True),
    entries=lambda config: window_entries("cohere2", config, PERIOD),
    told=lambda told: told_window(told, PERIOD),
)  # fmt: skip
