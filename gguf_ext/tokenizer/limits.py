"""What llama.cpp's tokenizers cannot do as transformers' does, read from tokenizer.json: one line each, for the user.

Every export and `sqft verify` report them; what nobody can do right is no difference of the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gguf_ext.tokenizer.ending import file_ends
from gguf_ext.tokenizer.keys import TOKENS
from gguf_ext.tokenizer.stripping import SPECIAL_TEXTS, Stripped, stripped

SHOWN = 3
"""Tokens that a line names."""


def added_limits(
    data: Mapping[str, Any], wanted: Stripped, rule: str, tokens: Sequence[str], kinds: Sequence[int]
) -> Iterator[str]:
    """Of the flags of added tokens. wanted: their white space. rule: the name that gives it to llama.cpp."""
    done = stripped(rule, tokens, kinds) or Stripped()
    for side, ours, theirs in (("before", wanted.left, done.left), ("after", wanted.right, done.right)):
        if lost := sorted(ours - theirs):
            yield f"white space {side} {_named(lost, tokens)} is kept by llama.cpp, the model's tokenizer drops it"
        if more := sorted(theirs - ours):
            yield f"white space {side} {_named(more, tokens)} is dropped by llama.cpp, the model's tokenizer keeps it"

    added = [entry for entry in data.get("added_tokens", []) if int(entry["id"]) < len(tokens)]
    if single := [int(entry["id"]) for entry in added if entry.get("single_word")]:
        yield f"llama.cpp finds {_named(single, tokens)} inside of words too, the model's tokenizer does not"
    prepended = "Prepend" in str(data.get("normalizer"))
    if prepended and (marked := [int(entry["id"]) for entry in added if entry.get("normalized")]):
        yield f"the model's tokenizer finds {_named(marked, tokens)} after white space only, llama.cpp anywhere"

    ordinary = [token for token, text in enumerate(tokens) if text in SPECIAL_TEXTS and kinds[token] in (1, 6)]
    if ordinary:
        yield f"{_named(ordinary, tokens)} are ordinary texts to the model's tokenizer, to llama.cpp special tokens"


def surroundings_limit(before: Sequence[int], after: Sequence[int], special: Mapping[str, int], texts: Any) -> str:
    """Of what transformers puts before and after a text (token ids), which llama.cpp does with one start and one end
    token only. texts: token ids → their texts. "" where that is all."""
    bos, eos = [[special[name]] if name in special else [] for name in ("bos", "eos")]
    if list(before) in ([], bos) and list(after) in ([], eos):
        return ""
    around = " … ".join("".join(texts(list(part))) for part in (before, after))
    return f"the model's tokenizer makes {around!r} of a text, llama.cpp adds but one token for start and end"


def metaspace_limit(scheme: str) -> str:
    """Of a space in front of a text, by the `prepend_scheme` of Metaspace."""
    if scheme == "never":
        return ""
    after = "and one to what follows a special token" if scheme == "first" else "and after a special token"
    return (
        f"llama.cpp adds a space in front of texts that begin with one, {after}, where the model's tokenizer "
        f"(Metaspace, prepend_scheme={scheme!r}) does not"
    )


def end_limits(metadata: Mapping[str, Any], wanted: Sequence[int]) -> Iterator[str]:
    """Of the tokens at which a text of this file ends. wanted: those of the model, none where it does not say."""
    tokens, ends = metadata[TOKENS], file_ends(metadata)
    if lost := [tokens[token] for token in wanted if 0 <= token < len(tokens) and token not in ends]:
        texts = ", ".join(map(repr, lost))
        yield f"llama.cpp has no place for all end tokens of the model: it will not stop at {texts}"
    if wanted and (more := sorted(ends - set(wanted))):
        yield f"llama.cpp ends a text at {_named(more, tokens)} too, by their names"


def _named(ids: Sequence[int], tokens: Sequence[str]) -> str:
    texts = ", ".join(repr(tokens[token]) for token in ids[:SHOWN])
    return texts if len(ids) <= SHOWN else f"{texts} and {len(ids) - SHOWN} more tokens"
