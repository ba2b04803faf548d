"""The part of `sqft verify` that is not weights: whether the file cuts a text as the model's tokenizer does.

What decides that is compared: tokens, merges, the ids of the special tokens, and which of them are put around a text.
Other converters write the rest in their own way (names of padding, scores that only order merges, synonyms of
pre-tokenizers), so it is left out; `sqft verify --logits` cuts a text with both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gguf_ext.ending import file_ends
from gguf_ext.errors import GGUFError
from gguf_ext.layout import Layout
from gguf_ext.reader import GGUFFile
from gguf_ext.vocab import TokenKind, Vocabulary, read_vocabulary
from sqft_plugins.checkpoint import ModelFolder

TOKENS, MERGES = "tokenizer.ggml.tokens", "tokenizer.ggml.merges"
DECISIVE = [f"tokenizer.ggml.{name}" for name in ("model", "bos_token_id", "eos_token_id")]
FLAGS = [f"tokenizer.ggml.add_{name}" for name in ("bos_token", "eos_token", "space_prefix")]
"""Of a file without them llama.cpp goes by the kind of tokenizer."""


def compare_tokenizer(folder: ModelFolder, layout: Layout, read: GGUFFile) -> tuple[str, list[tuple[str, str]]]:
    """What is told of it ("equal", "different" or "not compared: why"), and the differences: metadata key, line."""
    if layout.config is None:
        return "not compared: the file is its own template", []
    byte_level = read.metadata.get("tokenizer.ggml.model") == "gpt2"
    pre = read.metadata.get("tokenizer.ggml.pre") if byte_level else None
    try:
        ours = read_vocabulary(folder.path, layout.config, pre)
    except GGUFError as error:
        return f"not compared: {error}", []
    found = list(_differences(ours, read))
    return ("different" if found else "equal"), found


def _differences(ours: Vocabulary, read: GGUFFile) -> Iterable[tuple[str, str]]:
    there, here = read.metadata, {entry.key: entry.value for entry in ours.entries()}
    used = [token for token, kind in enumerate(ours.kinds) if kind != TokenKind.UNUSED]
    for key, places in ((TOKENS, used), (MERGES, range(len(ours.merges)))):
        if line := _unequal(here.get(key, []), there.get(key) or [], places):
            yield key, line
    for key in (*DECISIVE, *(flag for flag in FLAGS if flag in there and flag in here)):
        if there.get(key) != here.get(key):
            yield key, f"{there.get(key)!r} in the file, {here.get(key)!r} in the model"
    alike = all(here.get(key) == there.get(key) for key in (TOKENS, *DECISIVE))
    if alike and (ends := file_ends(here)) != file_ends(there):
        yield "end tokens", f"{sorted(file_ends(there))} end a text in the file, {sorted(ends)} in the model's"


def _unequal(ours: Sequence[str], there: Sequence[str], places: Iterable[int]) -> str:
    """Which of the `places` are not equal in two lists, in a line; "" for none."""
    if len(there) != len(ours):
        return f"{len(there)} in the file, {len(ours)} in the model"
    wrong = [at for at in places if ours[at] != there[at]]
    if not wrong:
        return ""
    at = wrong[0]
    return f"{len(wrong)} differ, the first at {at}: {there[at]!r} in the file, {ours[at]!r} in the model"
