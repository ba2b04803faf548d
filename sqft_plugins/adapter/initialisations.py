"""Initialisations of a LoRA that write into the base weight (peft/tuners/lora/layer.py, `update_layer`).

What they leave of the base is saved with no adapter, and A and B over the untouched base are another model. PEFT
initialises again when it loads such an adapter; only some initialisations then come out the same.
"""

from __future__ import annotations

from typing import Any

PLAIN = ("gaussian", "eva", "orthogonal", "mica")
"""Beside True and False, the initialisations that write A and B only; any other is taken to change the base."""
CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Those of PEFT that do change it, by the beginnings of their names."""
REPEATED = ("pissa", "olora", "loftq")
"""Of the others, those that come out the same over the same base. `pissa_niter_…` draws random numbers, `corda` and
`lora_ga` need data that is not there on loading."""
CONVERT = (
    "save the trained model again with save_pretrained(DIR, path_initial_model_for_weight_conversion=…), which makes a "
    "plain LoRA of it"
)


def changes_base(init: Any) -> bool:
    """Whether `init_lora_weights` of a configuration changed the base weight."""
    return isinstance(init, str) and init.lower() not in PLAIN


def is_repeated(init: Any) -> bool:
    """Whether loading over the base gives the model that was trained."""
    return not changes_base(init) or init.lower() in REPEATED
