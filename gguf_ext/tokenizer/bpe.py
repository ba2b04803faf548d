"""tokenizer.json, as transformers loads it → llama.cpp's tokenizers.

transformers is asked for its tokenizer as it stands in memory, because classes such as `LlamaTokenizer` put their own
rules over those of the file. Byte-level BPE becomes llama.cpp's `gpt2`, BPE with byte fallback its `llama`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from gguf_ext.errors import GGUFError, UnsupportedTokenizerError
from gguf_ext.tokenizer.chat_templates import named_templates, with_tokens
from gguf_ext.tokenizer.keys import SPECIAL_KEYS
from gguf_ext.tokenizer.limits import metaspace_limit, surroundings_limit
from gguf_ext.tokenizer.merges import merge_scores
from gguf_ext.tokenizer.pretokenizer import DEVIATIONS, pre_tokenizer_name, steps
from gguf_ext.tokenizer.vocabulary import BYTES, SPACE, TokenKind, Vocabulary, reference_of


def from_transformers(tokenizer: Any, source: str, pre: str | None) -> Vocabulary:
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

    _check_model_section(data, source)

    # what both kinds have in common
    named_ids = {name: getattr(tokenizer, f"{name}_token_id", None) for name in SPECIAL_KEYS}
    special = {name: int(token) for name, token in named_ids.items() if token is not None}
    templates = named_templates(getattr(tokenizer, "chat_template", None))
    named = getattr(tokenizer, "special_tokens_map", {})
    before, after = _surroundings(tokenizer)
    limit = surroundings_limit(before, after, special, tokenizer.convert_ids_to_tokens)
    common: dict[str, Any] = {
        "special": special,
        "add_bos": before[:1] == [special.get("bos")],
        "add_eos": after[-1:] == [special.get("eos")],
        "chat_templates": {name: with_tokens(text, named) for name, text in templates.items()},
        "json": {key: data.get(key) for key in ("added_tokens", "normalizer")},
        "limits": (limit,) if limit else (),
        "reference": reference_of(tokenizer),
    }

    if data["model"].get("byte_fallback"):
        if pre is not None:
            raise GGUFError(
                f"--pre {pre}: the tokenizer of {source} has byte fallback and no pre-tokenizer: leave it out"
            )
        return _fallback_bpe(data, common, source)
    return _byte_level_bpe(data, common, source, pre)


def _surroundings(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that stand before and after every text: what really happens, whichever setting asked for it."""
    bare = list(tokenizer("a", add_special_tokens=False).input_ids)
    whole = list(tokenizer("a").input_ids)
    places = [at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare]
    if not bare or not places:
        return whole[:1], whole[1:][-1:]
    return whole[: places[-1]], whole[places[-1] + len(bare) :]


def _byte_level_bpe(data: dict[str, Any], common: dict[str, Any], source: str, pre: str | None) -> Vocabulary:
    normalizers = {part["type"] for part in steps(data.get("normalizer"), "normalizers")}
    cutters = {part["type"] for part in steps(data.get("pre_tokenizer"), "pretokenizers")}
    if "ByteLevel" not in cutters or normalizers - {"NFC"}:
        raise UnsupportedTokenizerError(
            f"tokenizer of {source} is neither byte-level BPE nor BPE with byte fallback, or normalizes "
            f"({', '.join(normalizers - {'NFC'}) or 'no'}): llama.cpp has no such tokenizer"
        )

    tokens, kinds = _token_list(data)
    name = pre or pre_tokenizer_name(data, source)

    nfc = ["llama.cpp does not normalize: texts that are not NFC are cut otherwise"] if normalizers else []
    marks = [f"pre-tokenizer {name}: llama.cpp {DEVIATIONS[name]}"] if name in DEVIATIONS else []
    return Vocabulary(
        model="gpt2",
        pre=name,
        tokens=tokens,
        kinds=kinds,
        merges=[" ".join(pair) for pair in _merge_pairs(data)],
        **{**common, "limits": (*common["limits"], *nfc, *marks)},
    )


def _fallback_bpe(data: dict[str, Any], common: dict[str, Any], source: str) -> Vocabulary:
    tokens, kinds = _token_list(data)
    spaces = _spaces(data, source)
    for token, name in enumerate(tokens):
        if kinds[token] == TokenKind.NORMAL and name in BYTES:
            kinds[token] = TokenKind.BYTE
    for entry in data["added_tokens"] if spaces.replaced else ():
        if entry.get("normalized"):  # looked for in a text with "▁" for a space, by llama.cpp before they are written
            tokens[entry["id"]] = entry["content"].replace(SPACE, " ")
    if "unk" in common["special"]:
        kinds[common["special"]["unk"]] = TokenKind.UNKNOWN

    cut_before = {entry["content"] for entry in data["added_tokens"] if not entry.get("single_word")}
    merges = [pair for pair in _merge_pairs(data) if SPACE in "".join(pair) or "".join(pair) not in cut_before]
    skips = "a text that is one token may be cut in several by llama.cpp, which has no ignore_merges here"
    skipping = [skips] if data["model"].get("ignore_merges") else []
    merged = [kind == TokenKind.NORMAL or SPACE in name for kind, name in zip(kinds, tokens, strict=True)]
    return Vocabulary(
        model="llama",
        tokens=tokens,
        kinds=kinds,
        scores=merge_scores(data["model"]["vocab"], merges, tokens, merged, source),
        space_prefix=spaces.prefix,
        **{**common, "limits": (*common["limits"], *spaces.limits, *skipping)},
    )


class _Spaces(NamedTuple):
    """prefix: whether llama.cpp shall put a space in front. replaced: whether a normalizer writes "▁" for a space, so
    that added tokens may be found in it. limits: what llama.cpp does otherwise."""

    prefix: bool
    replaced: bool
    limits: list[str]


def _spaces(data: Mapping[str, Any], source: str) -> _Spaces:
    """How a text becomes one that is merged. Raises UnsupportedTokenizerError for steps that llama.cpp lacks."""
    normalizers = [_named(part) for part in steps(data.get("normalizer"), "normalizers")]
    cutters = steps(data.get("pre_tokenizer"), "pretokenizers")
    replaced, prepended = REPLACE in normalizers, PREPEND in normalizers
    metaspaces = [part for part in cutters if part["type"] == "Metaspace" and part.get("replacement") == SPACE]
    idle = [part for part in cutters if replaced and part["type"] == "Split" and _pattern(part) == " "]
    strange = [part for part in normalizers if part not in (REPLACE, PREPEND)]
    strange += [_named(part) for part in cutters if part not in metaspaces and part not in idle]
    if strange or not (replaced or metaspaces):
        why = f"has {', '.join(strange)}, which llama.cpp's has not" if strange else "does not write ▁ for a space"
        raise UnsupportedTokenizerError(f"tokenizer of {source} {why}: use another")

    limits = []
    if any(part.get("split", True) for part in metaspaces):
        inner = [name for name in data["model"]["vocab"] if SPACE in name[1:] and name not in BYTES]
        if inner:
            limits.append(f"llama.cpp uses tokens of several words, such as {inner[0]!r}: Metaspace cuts them apart")
    scheme = "never" if prepended or not metaspaces else str(metaspaces[0].get("prepend_scheme", "always"))
    if limit := metaspace_limit(scheme):
        limits.append(limit)
    return _Spaces(prepended or scheme != "never", replaced, limits)


REPLACE, PREPEND = "Replace ' ' by '▁'", "Prepend '▁'"


def _named(part: Mapping[str, Any]) -> str:
    """A normalizer or pre-tokenizer in words."""
    if part["type"] == "Replace":
        return f"Replace {_pattern(part)!r} by {part.get('content')!r}"
    if part["type"] == "Prepend":
        return f"Prepend {part.get('prepend')!r}"
    return f"Split at {_pattern(part)!r}" if part["type"] == "Split" else str(part["type"])


def _pattern(part: Mapping[str, Any]) -> str:
    pattern = part.get("pattern") or {}
    return str(pattern.get("String", pattern.get("Regex")))


def _check_model_section(data: Mapping[str, Any], source: str) -> None:
    """Raises UnsupportedTokenizerError for options of the BPE itself that llama.cpp lacks."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if found := data["model"].get(name):
            raise UnsupportedTokenizerError(
                f"tokenizer of {source} has {name}={found!r}, which llama.cpp has not: use another"
            )


def _token_list(data: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Texts and kinds, one a token id; holes are unused tokens."""
    named: dict[int, str] = {token: name for name, token in data["model"]["vocab"].items()}
    added = {int(entry["id"]): entry for entry in data["added_tokens"]}
    named.update({token: entry["content"] for token, entry in added.items()})
    tokens = [named.get(token, f"[UNUSED{token}]") for token in range(max(named, default=-1) + 1)]
    kinds = [int(TokenKind.NORMAL if token in named else TokenKind.UNUSED) for token in range(len(tokens))]
    for token, entry in added.items():
        kinds[token] = TokenKind.CONTROL if entry.get("special") else TokenKind.USER_DEFINED
    return tokens, kinds


def _merge_pairs(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(left, right) for left, right in data["model"]["merges"]]
