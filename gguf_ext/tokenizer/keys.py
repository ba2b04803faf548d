"""The `tokenizer.*` keys of a GGUF file, and the token ids that llama.cpp takes where one of them is missing."""

from __future__ import annotations

from typing import Any

PREFIX = "tokenizer.ggml."
MODEL, PRE, TOKENS, MERGES, TYPES, SCORES = (
    f"{PREFIX}{name}" for name in ("model", "pre", "tokens", "merges", "token_type", "scores")
)
TEMPLATE = "tokenizer.chat_template"
"""The key of the template; that of one called NAME ends in `.NAME`."""
SPECIAL_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
"""transformers' names, without `_token` → GGUF's (the spelling of `seperator` is GGUF's)."""
OFF: dict[str, Any] = {
    f"{PREFIX}{name}": False for name in ("add_sep_token", "remove_extra_whitespaces", "normalizer.lowercase")
}
OFF |= {f"{PREFIX}suppress_tokens": []}
"""What no tokenizer of ours asks for, and what llama.cpp takes where it is missing."""
DEFAULT_IDS = {"llama": {"bos": 1, "eos": 2, "unk": 0}, "gpt2": {"bos": 11, "eos": 11}}
"""llama.cpp's tokenizer → token ids that hold where the file names none."""


def id_key(name: str) -> str:
    """The key of a special token: "unk" → `tokenizer.ggml.unknown_token_id`, "eot" → `tokenizer.ggml.eot_token_id`."""
    return f"{PREFIX}{SPECIAL_KEYS.get(name, name)}_token_id"
