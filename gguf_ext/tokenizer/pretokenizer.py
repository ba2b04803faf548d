"""llama.cpp's name for the pre-tokenizer of a byte-level BPE tokenizer.

A GGUF file does not carry the regular expression that cuts a text before the merges, only a name
(`tokenizer.ggml.pre`) that llama.cpp has the expression for (llama-vocab.cpp). So we read the expressions out of
tokenizer.json and look them up; each row of the table stands in llama.cpp with the same expressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf_ext.errors import UnknownPreTokenizerError
from sqft_plugins.errors import nearest
from sqft_plugins.progress import say

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""What `ByteLevel(use_regex=true)` applies (tokenizers, byte_level.rs)."""
DIGITS = r"\p{N}"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = [r"[^\r\n\p{L}\p{N}]?" + _UPPER + "*" + _LOWER + "+", r"[^\r\n\p{L}\p{N}]?" + _UPPER + "+" + _LOWER + "*"]
_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = "|".join(_WORDS) + r"|\p{N}" + _SLASH
GPT4O = "|".join(word + CONTRACTIONS + "?" for word in _WORDS) + r"|\p{N}{1,3}" + _SLASH
SEED_CODER = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}"
    + "\r\n"
    + r"]+|\s*["
    + "\r\n"
    + r"]+|\s+(?!\S)|\s+"
)
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
"""Of bigscience/bloom's tokenizer.json; llama.cpp has the inner brackets resolved."""
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    + "\r\n"
    + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
    + "\r\n"
    + r"]*|\s*["
    + "\r\n"
    + r"]+|\s+(?!\S)|\s+",
)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGITS)

# (expressions, whether a whole word of the vocabulary needs no merges) → name
KNOWN: dict[tuple[tuple[str, ...], bool], str] = {
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "dbrx",  # the same expression, with merges: llama.cpp's `llama-bpe` would skip them
    ((QWEN2,), False): "qwen2",
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((TEKKEN,), True): "tekken",
    ((GPT4O,), False): "gpt-4o",
    ((SEED_CODER,), False): "seed-coder",
    (DEEPSEEK_CODER, False): "deepseek-coder",
    (DEEPSEEK3, False): "deepseek-v3",
    ((BLOOM,), False): "bloom",
}

MARKS = "cuts words at combining marks, as of Devanagari and Thai, where the model's tokenizer does not"
DEVIATIONS = {"tekken": MARKS, "gpt-4o": MARKS}
"""What llama.cpp does otherwise under a name, seen in 0.3.36; it has no better one."""


def pre_tokenizer_name(tokenizer: Mapping[str, Any], source: str) -> str:
    """The name for a parsed tokenizer.json. Raises UnknownPreTokenizerError, telling about `--pre`."""
    cutters = steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    expressions = tuple(expression for step in cutters for expression in _expressions(step))
    skips = bool(tokenizer["model"].get("ignore_merges"))
    if name := KNOWN.get((expressions, skips)):
        return name
    raise UnknownPreTokenizerError(
        f"pre_tokenizer {' | '.join(expressions)[:120]!r} (ignore_merges={skips}) of {source} is none that sqft knows: "
        f"name llama.cpp's own with --pre; known here: {', '.join(sorted(set(KNOWN.values())))}"
    )


def warn_of_unknown_name(name: str) -> None:
    """Logs a warning for a name given by hand that is not in our table: llama.cpp knows more, and only it can say."""
    if name not in (known := set(KNOWN.values())):
        say(
            f"--pre {name!r} is none that sqft knows, and was not tried: if llama.cpp has no such name it refuses the "
            f"file; {nearest(name, known)}"
        )


def steps(section: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The steps of a normalizer or pre_tokenizer section, in order; `name` is what a sequence calls them."""
    if section is None:
        return []
    if section["type"] == "Sequence":
        return [step for part in section[name] for step in steps(part, name)]
    return [section]


def _expressions(step: Mapping[str, Any]) -> list[str]:
    """The regular expressions of a step, in order; what is no expression stands as its type."""
    kind = step["type"]
    if kind == "Split":
        pattern, way = step["pattern"], (step.get("behavior"), bool(step.get("invert")))
        plain = way in (("Isolated", False), ("Removed", True)) and "Regex" in pattern
        return [pattern["Regex"]] if plain else [f"Split{pattern}"]
    if kind == "ByteLevel":
        prefix = ["add_prefix_space"] if step.get("add_prefix_space") else []
        return prefix + ([GPT2] if step.get("use_regex", True) else [])
    if kind == "Digits":
        return [DIGITS if step.get("individual_digits") else r"\p{N}+"]
    return [str(kind)]
