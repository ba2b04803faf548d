"""Tokenizers: what llama.cpp needs so that it gives the token ids that transformers gives.

transformers is asked for its tokenizer as it stands in memory, because classes such as `LlamaTokenizer` put their own
rules over those in tokenizer.json. Byte-level BPE becomes llama.cpp's `gpt2`, BPE with byte fallback its `llama`
(sentencepiece). A folder with nothing but a sentencepiece tokenizer.model is read without transformers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

from gguf_ext.arch import Config, Entry
from gguf_ext.ending import END_TOKENS, place_ends
from gguf_ext.errors import GGUFError, MissingTokenizerError, UnsupportedTokenizerError
from gguf_ext.pretokenizer import pre_tokenizer_name
from gguf_ext.prompt import named_templates, template_entries, with_tokens

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
    a space in front. chat_templates: name → text, "default" for the one without a name."""

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

    pre: llama.cpp's name of the pre-tokenizer, to override the one found. Raises MissingTokenizerError,
    UnknownPreTokenizerError, UnsupportedTokenizerError.
    """
    if (folder / "tokenizer.json").is_file() or (folder / "vocab.json").is_file():
        from sqft_plugins.checkpoint import load_tokenizer

        vocabulary = _from_transformers(load_tokenizer(folder), str(folder), pre)
    elif (folder / "tokenizer.model").is_file():
        from gguf_ext.sentencepiece import read_sentencepiece

        if pre is not None:
            raise GGUFError(
                f"--pre {pre}: {folder}/tokenizer.model is sentencepiece, which has no pre-tokenizer: leave it out"
            )
        vocabulary = read_sentencepiece(folder, config)
    else:
        raise MissingTokenizerError(
            f"model {folder} has no tokenizer: copy tokenizer.json and tokenizer_config.json into it"
        )
    return _completed(vocabulary, str(folder), config)


def from_tokenizer(tokenizer: Any, source: str, config: Config, pre: str | None = None) -> Vocabulary:
    """`read_vocabulary` of a tokenizer of transformers in memory. source: for messages."""
    return _completed(_from_transformers(tokenizer, source, pre), source, config)


def _completed(vocabulary: Vocabulary, source: str, config: Config) -> Vocabulary:
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if "eos" not in vocabulary.special and isinstance(eos, int):
        vocabulary = replace(vocabulary, special={**vocabulary.special, "eos": eos})
    vocabulary = vocabulary.resized(int(config["vocab_size"]))
    check(vocabulary, source)
    ends = config.get(END_TOKENS) or []
    return replace(vocabulary, special=place_ends(ends, vocabulary.tokens, vocabulary.special))


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


def _from_transformers(tokenizer: Any, source: str, pre: str | None) -> Vocabulary:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} is a Python class ({type(tokenizer).__name__}): save it as tokenizer.json"
        )
    data = json.loads(backend.to_str())
    if data["model"]["type"] != "BPE":
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} is {data['model']['type']}: only BPE tokenizers are supported"
        )
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in SPECIAL_KEYS}
    special = {name: int(token) for name, token in special.items() if token is not None}
    probe = list(tokenizer("a").input_ids)  # what really happens, whichever setting asked for it
    templates = named_templates(getattr(tokenizer, "chat_template", None))
    named = getattr(tokenizer, "special_tokens_map", {})
    common: dict[str, Any] = {
        "special": special,
        "add_bos": probe[:1] == [special.get("bos")],
        "add_eos": len(probe) > 1 and probe[-1:] == [special.get("eos")],
        "chat_templates": {name: with_tokens(text, named) for name, text in templates.items()},
    }
    if data["model"].get("byte_fallback"):
        if pre is not None:
            raise GGUFError(
                f"--pre {pre}: the tokenizer of {source} has byte fallback and no pre-tokenizer: leave it out"
            )
        return _fallback_bpe(data, common, source)
    return _byte_level_bpe(data, common, source, pre)


def _byte_level_bpe(data: dict[str, Any], common: dict[str, Any], source: str, pre: str | None) -> Vocabulary:
    normalizers = set(_types(data.get("normalizer"), "normalizers")) - {
        "NFC"
    }  # NFC text is the rule, and llama.cpp has none
    if "ByteLevel" not in _types(data.get("pre_tokenizer"), "pretokenizers") or normalizers:
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} is neither byte-level BPE nor BPE with byte fallback, or normalizes "
            f"({', '.join(normalizers) or 'no'}): llama.cpp has no such tokenizer"
        )
    tokens, kinds = _tokens(data)
    return Vocabulary(
        model="gpt2",
        pre=pre or pre_tokenizer_name(data, source),
        tokens=tokens,
        kinds=kinds,
        scores=[],
        merges=[" ".join(pair) for pair in _merges(data)],
        space_prefix=False,
        **common,
    )


def _fallback_bpe(data: dict[str, Any], common: dict[str, Any], source: str) -> Vocabulary:
    tokens, kinds = _tokens(data)
    for token, name in enumerate(tokens):
        if kinds[token] == TokenKind.NORMAL and name in BYTES:
            kinds[token] = TokenKind.BYTE
        elif kinds[token] == TokenKind.USER_DEFINED:
            tokens[token] = name.replace(SPACE, " ")  # matched before spaces are rewritten
    if "unk" in common["special"]:
        kinds[common["special"]["unk"]] = TokenKind.UNKNOWN
    return Vocabulary(
        model="llama",
        pre="default",
        tokens=tokens,
        kinds=kinds,
        scores=merge_scores(data["model"]["vocab"], _merges(data), tokens, kinds, source),
        merges=[],
        space_prefix=_space_prefix(data, source),
        **common,
    )


def merge_scores(
    vocab: Mapping[str, int], merges: list[tuple[str, str]], tokens: list[str], kinds: list[int], source: str
) -> list[float]:
    """One score a token: minus the rank of its first merge; what no merge makes comes last.

    llama.cpp joins any two neighbours whose text is a token, best score first. That is what merges do as long as every
    way to cut a token in two is a merge and the merges of a token stand together, as in tokenizers made from
    sentencepiece.
    Raises UnsupportedTokenizerError where they are not.
    """
    rank: dict[str, int] = {}
    previous = None
    for index, (left, right) in enumerate(merges):
        joined = left + right
        if joined in rank and joined != previous:
            raise UnsupportedTokenizerError(
                f"merges of {joined!r} in the tokenizer of {source} do not stand together: llama.cpp would cut texts "
                f"differently; use a byte-level BPE or a sentencepiece tokenizer"
            )
        rank.setdefault(joined, index)
        previous = joined
    pairs = set(merges)
    for name, token in vocab.items():
        if kinds[token] != TokenKind.NORMAL:
            continue
        for cut in range(1, len(name)):
            left, right = name[:cut], name[cut:]
            if left in vocab and right in vocab and (left, right) not in pairs:
                raise UnsupportedTokenizerError(
                    f"merge {left!r} + {right!r} is missing in the tokenizer of {source}, and llama.cpp would do it: "
                    f"texts would be cut differently; use a byte-level BPE or a sentencepiece tokenizer"
                )
    return [-float(rank.get(name, len(merges))) for name in tokens]


def _space_prefix(data: Mapping[str, Any], source: str) -> bool:
    """Whether a text gets a space in front. Raises UnsupportedTokenizerError for normalizers that llama.cpp lacks."""
    normalizers = _types(data.get("normalizer"), "normalizers")
    cutters = _types(data.get("pre_tokenizer"), "pretokenizers")
    strange = set(normalizers) - {"Replace", "Prepend"} | set(cutters) - {"Metaspace", "Split"}
    if strange:
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} has {', '.join(sorted(strange))}, which llama.cpp's has not: use another"
        )
    metaspace = data.get("pre_tokenizer") or {}
    return "Prepend" in normalizers or ("Metaspace" in cutters and metaspace.get("prepend_scheme", "always") != "never")


def _tokens(data: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Texts and kinds, one a token id; holes are unused tokens."""
    named: dict[int, str] = {token: name for name, token in data["model"]["vocab"].items()}
    added = {int(entry["id"]): entry for entry in data.get("added_tokens", [])}
    named.update({token: entry["content"] for token, entry in added.items()})
    tokens = [named.get(token, f"[UNUSED{token}]") for token in range(max(named, default=-1) + 1)]
    kinds = [int(TokenKind.NORMAL if token in named else TokenKind.UNUSED) for token in range(len(tokens))]
    for token, entry in added.items():
        kinds[token] = TokenKind.CONTROL if entry.get("special") else TokenKind.USER_DEFINED
    return tokens, kinds


def _merges(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs, whether the file has them as lists or, as before tokenizers 0.20, as "left right"."""
    merges: Iterable[Any] = data["model"]["merges"]
    return [tuple(merge) if not isinstance(merge, str) else tuple(merge.split(" ", 1)) for merge in merges]  # type: ignore[misc]


def _types(section: Mapping[str, Any] | None, parts: str) -> list[str]:
    if section is None:
        return []
    if section["type"] == "Sequence":
        return [kind for part in section[parts] for kind in _types(part, parts)]
    return [section["type"]]
