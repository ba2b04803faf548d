"""Names of the tensors in an adapter's file.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight      A of model.layers.0.self_attn.q_proj, [r, in]
    base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight      B, [out, r]
    base_model.model.model.embed_tokens.lora_embedding_A                A of an embedding, [r, vocabulary]
    base_model.model.lm_head.base_layer.weight                          the base's own weight, saved along

`base_model.model.` is how PeftModel reaches the base; files of other tools may lack it.
"""

from __future__ import annotations

PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"
CODES_OF = ".lora_codes."
"""Within the name of the codes that an adapter has settled to: the module before it, `patch_name` behind."""
EMBEDDING_A, EMBEDDING_B = ".lora_embedding_A", ".lora_embedding_B"
BASE_WEIGHT = ".base_layer.weight"

B_OF = {A: B, EMBEDDING_A: EMBEDDING_B}
"""How the name of an A ends → how that of its B does."""


def in_base(name: str) -> str:
    """The name that a module or a tensor has in the base model."""
    return name.removeprefix(PREFIX)


def in_file(name: str) -> str:
    """The name in an adapter's file of what the base model calls `name`."""
    return PREFIX + name


def module_of(name: str) -> str:
    """The adapted module that a tensor belongs to, by its name in the base model."""
    return in_base(name).partition(".lora_")[0].partition(".base_layer.")[0]


def is_b(name: str) -> bool:
    """Whether this is a B, which is where the scaling goes."""
    return name.endswith((B, EMBEDDING_B))


def patch_name(rank: int) -> str:
    """Of the codes at one rank (sqft_plugins/adapter/settled.py)."""
    return f"r{rank}"
