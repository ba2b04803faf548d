"""What llama.cpp derives from names: around which special tokens white space is swallowed.

transformers has that as a flag of each added token (`lstrip`, `rstrip`). A GGUF file has no place for flags; llama.cpp
sets them by `tokenizer.ggml.pre`, `general.architecture` and `general.name` (llama-vocab.cpp, "Handle per token
attributes"). So the name that a file gets is chosen by the tokenizer's flags: with a word that llama.cpp looks for
where they ask for it, and without one where they do not. From `general.name` nothing else is derived, from other
`general.*` names nothing at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from gguf_ext.tokenizer.ending import ENDS, INFILL
from gguf_ext.tokenizer.keys import PRE, TOKENS, TYPES

PHI3, MODERN_BERT, JINA = "phi-3", "modern-bert", "jina-v2-de"
WORDS = {"phi-3": PHI3, "phi3": PHI3, "modern-bert": MODERN_BERT}
"""In a name, in small letters → the rule. The first of them decides."""
JINAS = ("jina-v2-de", "jina-v2-es", "jina-v2-code")
NEEDED = ("</s>", "<unk>", "<s>", "<|endoftext|>")
"""Tokens without which llama.cpp cannot load a file that is called phi-3."""
SPECIAL_KINDS = (2, 3, 4)
"""Unknown, control, user-defined: what llama.cpp cuts out of a text before anything else."""
INFILL_TEXTS = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
    "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
    "▁<MID>", "<|code_middle|>", "<|middle|>",
}).union(*INFILL.values())  # fmt: skip
SHOWN = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})
"""Tokens of gpt-oss that llama.cpp makes user-defined."""
SPECIAL_TEXTS = ENDS | INFILL_TEXTS | SHOWN
"""Texts that llama.cpp takes for special tokens, whatever kind the file says."""


@dataclass(frozen=True)
class Stripped:
    """Token ids before (left) and after (right) which white space goes with the token."""

    left: frozenset[int] = frozenset()
    right: frozenset[int] = frozenset()

    def differing(self, other: Stripped) -> set[int]:
        return set((self.left ^ other.left) | (self.right ^ other.right))


def rule_of(name: str, pre: str = "") -> str:
    """The rule that llama.cpp finds in a file's names: PHI3, MODERN_BERT, JINA, or ""."""
    if any(jina in pre for jina in JINAS):
        return JINA
    return next((rule for word, rule in WORDS.items() if word in name.lower()), "")


def stripped(rule: str, tokens: Sequence[str], kinds: Sequence[int]) -> Stripped | None:
    """What the rule does with these tokens; None where llama.cpp cannot load such a file."""
    ids = {text: token for token, text in enumerate(tokens)}
    if rule == PHI3:
        if not set(NEEDED) <= set(ids):
            return None
        special = {token for token, kind in enumerate(kinds) if kind in SPECIAL_KINDS}
        special |= {ids[text] for text in SPECIAL_TEXTS & set(ids)} | {ids["</s>"]}
        return Stripped(right=frozenset(special - {ids[text] for text in NEEDED if text != "</s>"}))
    mask = {MODERN_BERT: "[MASK]", JINA: "<mask>"}.get(rule)
    return Stripped(left=frozenset({ids[mask]} if mask in ids else ()))


def rule_in(metadata: Mapping[str, Any]) -> str:
    """`rule_of` a file."""
    return rule_of(str(metadata.get("general.name", "")), str(metadata.get(PRE, "")))


def stripped_in(metadata: Mapping[str, Any]) -> Stripped | None:
    """`stripped` of a file."""
    tokens = metadata.get(TOKENS) or []
    kinds = metadata.get(TYPES) or [1] * len(tokens)
    return stripped(rule_in(metadata), tokens, kinds)


def wanted_stripping(added: Iterable[Mapping[str, Any]], size: int) -> Stripped:
    """What the flags of added tokens ask for, of those among the first `size` tokens."""
    entries = [entry for entry in added if int(entry["id"]) < size]
    sides = [frozenset(int(entry["id"]) for entry in entries if entry.get(flag)) for flag in ("lstrip", "rstrip")]
    return Stripped(*sides)


def best_rule(wanted: Stripped, tokens: Sequence[str], kinds: Sequence[int], jina: bool) -> str:
    """The rule whose tokens are most like those wanted; the plain one where others are no better. jina: whether the
    pre-tokenizer may be called so."""
    found = {rule: stripped(rule, tokens, kinds) for rule in ("", PHI3, MODERN_BERT, *((JINA,) if jina else ()))}
    wrong = {rule: len(wanted.differing(done)) for rule, done in found.items() if done is not None}
    best: str = min(wrong, key=lambda rule: wrong[rule])  # the first of equal ones
    return best


def fitting_name(name: str, rule: str) -> str:
    """`name` as it may stand in a file in which llama.cpp shall find this rule: words of others are written apart, and
    its own is added."""
    if rule in (JINA, rule_of(name)):  # JINA stands in another key, which llama.cpp reads first
        return name
    for word in WORDS:
        apart = "modern bert" if word == MODERN_BERT else "phi 3"
        name = re.sub(word, partial(_as_written, apart), name, flags=re.IGNORECASE)
    return f"{name} ({rule})" if rule in WORDS else name


def _as_written(apart: str, found: re.Match[str]) -> str:
    """`apart` in the letters of what was found: Phi-3 becomes Phi 3."""
    text = found.group()
    return apart.upper() if text.isupper() else text[0] + apart[1:]
