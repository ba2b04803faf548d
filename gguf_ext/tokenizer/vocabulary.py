"""`Vocabulary`: a tokenizer as llama.cpp has it, and the `tokenizer.*` entries that say so in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

from gguf_ext.arch import Entry
from gguf_ext.errors import UnsupportedTokenizerError
from gguf_ext.tokenizer.chat_templates import template_entries
from gguf_ext.tokenizer.keys import MERGES, MODEL, PRE, PREFIX, SCORES, TOKENS, TYPES, id_key

SPACE = "▁"
"""How sentencepiece writes a space."""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""The tokens for single bytes of a tokenizer with byte fallback."""


class TokenKind(IntEnum):
    """llama.cpp's token types (llama.h, enum llama_token_type); sentencepiece numbers them alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer of llama.cpp.

    model: `llama` or `gpt2`.
    tokens, kinds: one a token id.
    special: "bos", "eos", … → token id.
    add_bos, add_eos: whether a text gets these tokens.
    pre: the name of the pre-tokenizer.
    scores: of llama, one a token id.
    merges: of gpt2, "left right", best first.
    space_prefix: whether a text gets a space in front.
    chat_templates: name → text, "default" for the one without a name.
    json: tokenizer.json, or whatever else has the flags of the added tokens.
    rule: of `stripping`, by which llama.cpp shall strip white space.
    limits: what llama.cpp does otherwise, a line each.
    reference: text → token ids of the model's own tokenizer; None where it cannot be run.
    """

    model: str
    tokens: list[str]
    kinds: list[int]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    pre: str = "default"
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    space_prefix: bool = False
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] = field(default_factory=dict, repr=False)
    rule: str = ""
    limits: tuple[str, ...] = ()
    reference: Callable[[str], list[int]] | None = None

    def resized(self, size: int) -> Vocabulary:
        """With as many tokens as the embedding has rows: padded with unused ones, or without those that have no row."""
        names = set(self.tokens)
        padding = [f"[PAD{index}]" for index in range(len(self.tokens), size)]
        if clash := names & set(padding):
            raise UnsupportedTokenizerError(
                f"token {min(clash)!r} of the tokenizer is the name of a padding token: rename it"
            )

        return replace(
            self,
            tokens=(self.tokens + padding)[:size],
            kinds=(self.kinds + [TokenKind.UNUSED] * len(padding))[:size],
            scores=(self.scores + self.scores[-1:] * len(padding))[:size],
            special={name: token for name, token in self.special.items() if token < size},
        )

    def entries(self) -> list[Entry]:
        """The `tokenizer.*` metadata."""
        entries = [
            Entry(MODEL, self.model, "string"),
            Entry(PRE, self.pre, "string"),
            Entry(TOKENS, self.tokens, "strings"),
            Entry(TYPES, [int(kind) for kind in self.kinds], "ints"),
        ]
        if self.scores:
            entries.append(Entry(SCORES, self.scores, "floats"))
        if self.merges:
            entries.append(Entry(MERGES, self.merges, "strings"))

        for name, token in self.special.items():
            entries.append(Entry(id_key(name), token, "uint32"))
        entries.append(Entry(f"{PREFIX}add_bos_token", self.add_bos, "bool"))
        entries.append(Entry(f"{PREFIX}add_eos_token", self.add_eos, "bool"))
        if self.model == "llama":
            entries.append(Entry(f"{PREFIX}add_space_prefix", self.space_prefix, "bool"))

        return entries + template_entries(self.chat_templates)


def reference_of(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text → token ids, for `Vocabulary.reference`. tokenizer: of transformers."""
    return lambda text: list(tokenizer(text).input_ids)


def check(vocabulary: Vocabulary, source: str) -> None:
    """Raises UnsupportedTokenizerError for what would abort llama.cpp, or make it take a token of its own."""
    tokens = vocabulary.tokens
    if len(set(tokens)) != len(tokens):
        twice = Counter(tokens).most_common(1)[0][0]
        raise UnsupportedTokenizerError(
            f"token {twice!r} of {source} is there twice, which llama.cpp refuses: repair tokenizer.json"
        )
    if vocabulary.model == "llama" and (missing := sorted(set(BYTES) - set(tokens))):
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} has no byte token {missing[0]}: llama.cpp needs all 256"
        )

    if "eos" not in vocabulary.special:
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} has no eos_token, and llama.cpp would take another: set it in tokenizer_config.json"
        )
    if vocabulary.add_bos and "bos" not in vocabulary.special:
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} adds a bos_token but names none: set it in tokenizer_config.json"
        )
