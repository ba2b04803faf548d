"""Tokenizers: what llama.cpp needs so that it gives the token ids that transformers gives.

transformers is asked for its tokenizer as it stands in memory, because classes such as `LlamaTokenizer` put their own
rules over those in tokenizer.json. Byte-level BPE becomes llama.cpp's `gpt2`, BPE with byte fallback its `llama`
(sentencepiece). A folder with nothing but a sentencepiece tokenizer.model is read without transformers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from gguf_ext.arch import Config, Entry
from gguf_ext.errors import GGUFError, MissingTokenizerError, UnsupportedTokenizerError
from gguf_ext.tokenizer.chat_templates import template_entries
from gguf_ext.tokenizer.ending import END_TOKENS, place_ends
from gguf_ext.tokenizer.limits import added_limits
from gguf_ext.tokenizer.stripping import JINA, best_rule, wanted_stripping
from sqft_plugins.errors import CheckpointError
from sqft_plugins.progress import say

SPACE = "▁"
"""How sentencepiece writes a space."""


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
    """model: `llama` or `gpt2`. pre: the pre-tokenizer. tokens, kinds, scores: one a token id (scores empty for gpt2).
    merges: "left right", best first (empty for llama). special: "bos", "eos", … → id. space_prefix: whether a text gets
    a space in front. chat_templates: name → text, "default" for the one without a name.

    json: tokenizer.json, or what else tells the flags of the added tokens. rule: of `stripping`, by which llama.cpp
    shall strip white space. limits: what llama.cpp does otherwise, a line each. reference: text → token ids, as
    the model's own tokenizer gives them; None where it cannot be asked."""

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    special: dict[str, int]
    add_bos: bool
    add_eos: bool
    space_prefix: bool
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
            scores=(self.scores + [self.scores[-1] if self.scores else 0.0] * len(padding))[:size]
            if self.scores
            else [],
            special={name: token for name, token in self.special.items() if token < size},
        )

    def entries(self) -> list[Entry]:
        """The `tokenizer.*` metadata."""
        entries = [
            Entry("tokenizer.ggml.model", self.model, "string"),
            Entry("tokenizer.ggml.pre", self.pre, "string"),
            Entry("tokenizer.ggml.tokens", self.tokens, "strings"),
            Entry("tokenizer.ggml.token_type", [int(kind) for kind in self.kinds], "ints"),
        ]
        if self.scores:
            entries.append(Entry("tokenizer.ggml.scores", self.scores, "floats"))
        if self.merges:
            entries.append(Entry("tokenizer.ggml.merges", self.merges, "strings"))
        for name, token in self.special.items():
            entries.append(Entry(f"tokenizer.ggml.{SPECIAL_KEYS.get(name, name)}_token_id", token, "uint32"))
        entries.append(Entry("tokenizer.ggml.add_bos_token", self.add_bos, "bool"))
        entries.append(Entry("tokenizer.ggml.add_eos_token", self.add_eos, "bool"))
        if self.model == "llama":
            entries.append(Entry("tokenizer.ggml.add_space_prefix", self.space_prefix, "bool"))
        return entries + template_entries(self.chat_templates)


SPECIAL_KEYS = {
    "bos": "bos",
    "eos": "eos",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "cls": "cls",
    "mask": "mask",
}
"""Our names → GGUF's (the spelling of `seperator` is GGUF's)."""


def read_vocabulary(folder: Path, config: Config, pre: str | None = None) -> Vocabulary:
    """The tokenizer of a model folder, with one token for each row of the embedding.

    pre: llama.cpp's name of the pre-tokenizer, to override the one found. A tokenizer.json that llama.cpp cannot follow
    gives way to a tokenizer.model of the same tokens. Raises MissingTokenizerError, UnknownPreTokenizerError,
    UnsupportedTokenizerError.
    """
    from gguf_ext.tokenizer.bpe import from_transformers
    from gguf_ext.tokenizer.tekken import load_mistral

    has_model = (folder / "tokenizer.model").is_file()
    if any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "tekken.json")):
        tokenizer, told = load_mistral(folder)
        try:
            vocabulary = from_transformers(tokenizer, str(folder), pre)
            vocabulary = replace(vocabulary, limits=(*told, *vocabulary.limits))
        except UnsupportedTokenizerError as error:
            if not has_model or pre is not None:
                raise
            vocabulary = _of_same_tokens(folder, config, tokenizer, error)
    elif has_model:
        if pre is not None:
            raise GGUFError(
                f"--pre {pre}: {folder}/tokenizer.model is sentencepiece, which has no pre-tokenizer: leave it out"
            )
        vocabulary = _from_sentencepiece(folder, config)
    else:
        raise MissingTokenizerError(
            f"model {folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json into it"
        )
    return _completed(vocabulary, str(folder), config)


def from_tokenizer(tokenizer: Any, source: str, config: Config, pre: str | None = None) -> Vocabulary:
    """`read_vocabulary` of a tokenizer of transformers in memory. source: for messages."""
    from gguf_ext.tokenizer.bpe import from_transformers

    return _completed(from_transformers(tokenizer, source, pre), source, config)


def reference_of(tokenizer: Any) -> Callable[[str], list[int]]:
    """Text → token ids, for `Vocabulary.reference`."""
    return lambda text: list(tokenizer(text).input_ids)


def _from_sentencepiece(folder: Path, config: Config) -> Vocabulary:
    """Of tokenizer.model, with transformers' reading of it as reference where it has one."""
    from gguf_ext.tokenizer.sentencepiece import read_sentencepiece
    from sqft_plugins.checkpoint import load_tokenizer

    vocabulary = read_sentencepiece(folder, config)
    try:
        tokenizer = load_tokenizer(folder)
    except CheckpointError:  # it needs packages that we do not
        return vocabulary
    return replace(vocabulary, reference=reference_of(tokenizer))


def _of_same_tokens(folder: Path, config: Config, tokenizer: Any, error: UnsupportedTokenizerError) -> Vocabulary:
    """tokenizer.model in place of a tokenizer.json that llama.cpp cannot follow. Raises `error` where that is none, or
    has other tokens."""
    from gguf_ext.tokenizer.sentencepiece import read_sentencepiece

    try:
        vocabulary = read_sentencepiece(folder, config)
    except UnsupportedTokenizerError:
        raise error from None
    ids = tokenizer.get_vocab()
    named = [
        (text, token) for token, text in enumerate(vocabulary.tokens) if vocabulary.kinds[token] != TokenKind.UNUSED
    ]
    if any(ids.get(text, ids.get(text.replace(" ", SPACE))) != token for text, token in named):
        raise error
    say(f"{error}; the file has the tokenizer.model that stands beside it")
    flags = [
        {"id": token, "lstrip": entry.lstrip, "rstrip": entry.rstrip, "single_word": entry.single_word}
        for token, entry in tokenizer.added_tokens_decoder.items()
    ]
    return replace(vocabulary, json={"added_tokens": flags}, reference=reference_of(tokenizer))


def _completed(vocabulary: Vocabulary, source: str, config: Config) -> Vocabulary:
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if "eos" not in vocabulary.special and isinstance(eos, int):
        vocabulary = replace(vocabulary, special={**vocabulary.special, "eos": eos})
    vocabulary = vocabulary.resized(int(config["vocab_size"]))
    check(vocabulary, source)

    ends = config.get(END_TOKENS) or []
    vocabulary = replace(vocabulary, special=place_ends(ends, vocabulary.tokens, vocabulary.special))
    return _told_of_white_space(vocabulary)


def _told_of_white_space(vocabulary: Vocabulary) -> Vocabulary:
    """With the rule by which llama.cpp strips white space beside special tokens, and what of their flags it cannot."""
    tokens, kinds = vocabulary.tokens, vocabulary.kinds
    wanted = wanted_stripping(vocabulary.json.get("added_tokens", []), len(tokens))
    rule = best_rule(wanted, tokens, kinds, jina=vocabulary.pre in ("default", "gpt-2", JINA))
    told = added_limits(vocabulary.json, wanted, rule, tokens, kinds)
    return replace(
        vocabulary,
        rule=rule,
        pre=JINA if rule == JINA else vocabulary.pre,
        limits=(*vocabulary.limits, *told),
    )


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


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
