"""Mistral: transformers `MistralForCausalLM` → llama.cpp `llama`, which has the same graph but no sliding window."""

from __future__ import annotations

from gguf_ext.arch.decoder import decoder_note, decoder_rules, why_not, windowed_context
from gguf_ext.arch.rope import FACTORED, rope_constants, rope_entries
from gguf_ext.arch.spec import DECODER_KEYS, Architecture, Config, Entry


def _reason(config: Config) -> str:
    return why_not("llama", config, FACTORED)


def _entries(config: Config) -> list[Entry]:
    return [windowed_context("llama", config), *rope_entries("llama", config)]


MISTRAL = Architecture(
    name="llama",
    classes=("MistralForCausalLM",),
    keys=tuple(key for key in DECODER_KEYS if key.name != "context_length"),
    rules=decoder_rules(rotated=True),
    reason=_reason,
    entries=_entries,
    constants=rope_constants,
    note=decoder_note,
)
