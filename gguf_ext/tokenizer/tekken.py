"""Mistral's tokenizers, of which a folder may have but a tekken.json.

Where mistral-common is installed, transformers answers with its class, which has no tokenizer.json to read and never
takes a special token out of a text; without it, with one of its own that knows the same tokens but adds no `<s>`. A
Mistral model is trained with `<s>` in front, as mistral-common puts it there, so the file's tokenizer does as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gguf_ext.errors import UnsupportedTokenizerError
from sqft_plugins.checkpoint import load_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
LIMIT = "mistral-common takes a special token that stands in a text for letters, llama.cpp for the token"


def load_mistral(folder: Path) -> tuple[Any, list[str]]:
    """The tokenizer of a folder as one that has a tokenizer.json, where transformers can make it one, and its limits, a
    line each. Raises CheckpointError where transformers reads none, UnsupportedTokenizerError for a damaged file."""
    if not (folder / "tekken.json").is_file():
        return load_tokenizer(folder), []
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, mistral_format=False)
    except Exception as error:  # a damaged file makes it raise anything
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise UnsupportedTokenizerError(
            f"{folder}/tekken.json is none that transformers reads ({why}): copy it again, or give tokenizer.json"
        ) from error
    if (folder / "tokenizer.json").is_file():
        return tokenizer, []
    return _with_start(tokenizer, folder), [LIMIT]


def _with_start(tokenizer: Any, folder: Path) -> Any:
    from tokenizers import processors

    known = tokenizer.get_vocab()
    names = {name: text for name, text in SPECIAL.items() if text in known}
    if "bos_token" not in names:
        raise UnsupportedTokenizerError(f"{folder}/tekken.json has no <s>: copy it again, or give tokenizer.json")
    tokenizer.add_special_tokens(names)
    start = names["bos_token"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, known[start])]
    )
    return tokenizer
