"""Llama 1, 2 and 3: transformers `LlamaForCausalLM` → llama.cpp `llama`."""

from __future__ import annotations

from functools import partial

from gguf_ext.arch.decoder import decoder_rules, why_not
from gguf_ext.arch.rope import FACTORED, rope_constants, rope_entries, rope_note
from gguf_ext.arch.spec import DECODER_KEYS, Architecture

LLAMA = Architecture(
    name="llama",
    classes=("LlamaForCausalLM",),
    keys=DECODER_KEYS,
    rules=decoder_rules(rotated=True, qkv_bias="optional", bias="optional"),
    reason=partial(why_not, "llama", rope_types=FACTORED),
    entries=partial(rope_entries, "llama"),
    constants=rope_constants,
    note=rope_note,
)
