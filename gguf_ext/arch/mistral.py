"""Mistral: transformers `MistralForCausalLM` → llama.cpp `llama`, which has the same graph but no sliding window."""

from __future__ import annotations

from functools import partial

from gguf_ext.arch.decoder import WINDOWED_KEYS, decoder_note, decoder_rules, why_not, windowed_entries
from gguf_ext.arch.rope import FACTORED, rope_constants
from gguf_ext.arch.spec import Architecture

MISTRAL = Architecture(
    name="llama",
    classes=("MistralForCausalLM",),
    keys=WINDOWED_KEYS,
    rules=decoder_rules(rotated=True),
    reason=partial(why_not, "llama", rope_types=FACTORED),
    entries=partial(windowed_entries, "llama"),
    constants=rope_constants,
    note=decoder_note,
)
