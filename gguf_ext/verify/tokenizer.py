"""The part of `sqft verify` that is not weights: whether the file cuts a text as the model's tokenizer does.

All that llama.cpp reads is compared, in both directions, as it reads it: a key that is missing counts as what it takes
then. Other converters write some of it in their own way (names of padding, numbers of scores, names of pre-tokenizers),
so of these it is compared what they do: which tokens are used, in which order scores merge, which expressions cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gguf_ext.arch import Entry
from gguf_ext.errors import GGUFError, UnknownPreTokenizerError
from gguf_ext.layout import Layout
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.ending import END_TOKENS, end_tokens, file_ends
from gguf_ext.tokenizer.keys import (
    DEFAULT_IDS,
    MERGES,
    MODEL,
    OFF,
    PRE,
    PREFIX,
    SCORES,
    SPECIAL_KEYS,
    TEMPLATE,
    TOKENS,
    TYPES,
    id_key,
)
from gguf_ext.tokenizer.pre_names import adds_bos, cuts_alike
from gguf_ext.tokenizer.read import read_vocabulary
from gguf_ext.tokenizer.vocabulary import TokenKind, Vocabulary
from gguf_ext.verify.trial import compare_cuts
from sqft_plugins.checkpoint import ModelFolder

DECISIVE = (TOKENS, MERGES, MODEL, PRE)
"""What makes one tokenizer another."""
NO_BOS = ("chatglm-bpe", "glm4", "glm5")
ANY_KIND = {SCORES: ("floats", "ints")}


def compare_tokenizer(
    folder: ModelFolder, layout: Layout, read: GGUFFile, tried: bool = True
) -> tuple[str, list[tuple[str, str]]]:
    """The verdict ("equal", "equal, but" what llama.cpp does otherwise, "different" or "not compared: why"), and
    the differences: metadata key, line. tried: whether llama.cpp is asked as well, see `verify.trial`."""
    config = layout.config or template_config(folder, read)
    unknown = ""
    try:
        try:
            ours = read_vocabulary(folder.path, config)
        except UnknownPreTokenizerError as error:
            unknown = f"{PRE} was not compared: {error}"
            ours = read_vocabulary(folder.path, config, str(read.metadata.get(PRE, "default")))
    except GGUFError as error:
        return f"not compared: {error}", []

    found = list(differences(ours, read))
    limits = [unknown] if unknown else []
    if tried and not found:
        found, more = compare_cuts(ours, read)
        limits += more
    equal = f"equal, but {'; '.join(limits)}" if limits else "equal"
    return ("different" if found else equal), found


def template_config(folder: ModelFolder, read: GGUFFile) -> Mapping[str, Any]:
    """What a tokenizer needs to know of a model without a table."""
    tokens = read.metadata.get(TOKENS)
    config = {**folder.config, "vocab_size": len(tokens) if isinstance(tokens, list) else 0}
    return {**config, END_TOKENS: end_tokens(folder, config)}


def differences(ours: Vocabulary, read: GGUFFile) -> Iterator[tuple[str, str]]:
    """(key, line) of each difference between the tokenizer of a model and that of a file."""
    entries = {entry.key: entry for entry in ours.entries()}
    here, there = {key: entry.value for key, entry in entries.items()}, read.metadata
    if wrong := list(_kinds(entries, read)):
        yield from wrong
        return

    # tokens and merges
    used = [token for token, kind in enumerate(ours.kinds) if kind != TokenKind.UNUSED]
    for key, places in ((TOKENS, used), (MERGES, range(len(ours.merges)))):
        if line := _unequal(here.get(key, []), there.get(key) or [], places):
            yield key, line

    # how they are used
    if there.get(MODEL) != ours.model:
        yield MODEL, _line(there.get(MODEL), ours.model)
        return
    if ours.model == "gpt2" and not cuts_alike(str(there.get(PRE, "")), ours.pre):
        yield PRE, _line(there.get(PRE), ours.pre)
    if len(there.get(TOKENS) or []) == len(ours.tokens):
        yield from _types(ours, there.get(TYPES))
        yield from _scores(ours, there.get(SCORES))

    yield from _special(ours, there)
    yield from _flags(ours, there)

    # chat templates
    for key in sorted({key for key in (*here, *there) if key == TEMPLATE or key.startswith(f"{TEMPLATE}.")}):
        if there.get(key, "") != here.get(key, ""):
            yield key, _template_line(there.get(key), here.get(key))

    # where a text ends
    alike = all(here.get(key) == there.get(key) for key in (TOKENS, id_key("eos")))
    if alike and (ends := file_ends(here)) != file_ends(there):
        yield "end tokens", f"{sorted(file_ends(there))} end a text in the file, {sorted(ends)} in the model's"


def _kinds(entries: Mapping[str, Entry], read: GGUFFile) -> Iterator[tuple[str, str]]:
    """Values of a type that llama.cpp refuses."""
    for key, entry in entries.items():
        kind = read.kinds.get(key, entry.kind)
        if kind not in ANY_KIND.get(key, (entry.kind,)):
            yield key, f"is a {kind} in the file, llama.cpp reads a {entry.kind}"


def _types(ours: Vocabulary, there: Any) -> Iterator[tuple[str, str]]:
    """Which tokens are cut out of a text whole, shown or not, taken for bytes, or not used at all. A file without types
    has ordinary tokens only."""
    found = there if isinstance(there, list) else [int(TokenKind.NORMAL)] * len(ours.kinds)
    if line := _unequal([int(kind) for kind in ours.kinds], found, range(len(ours.kinds))):
        yield TYPES, line


def _scores(ours: Vocabulary, there: Any) -> Iterator[tuple[str, str]]:
    """Whether scores merge in the same order: their numbers do not matter. Compared are tokens that a merge makes."""
    if not ours.scores:
        return
    count = len(there) if isinstance(there, list) else "none"
    if count != len(ours.scores):
        yield SCORES, f"{count} in the file, {len(ours.scores)} in the model"
        return

    last = min(ours.scores)
    made = [
        token
        for token, score in enumerate(ours.scores)
        if score > last and len(ours.tokens[token]) > 1 and ours.kinds[token] == TokenKind.NORMAL
    ]
    made.sort(key=lambda token: -ours.scores[token])

    for one, other in pairwise(made):
        if (ours.scores[one] > ours.scores[other]) != (there[one] > there[other]) or there[one] < there[other]:
            yield SCORES, f"{ours.tokens[one]!r} and {ours.tokens[other]!r} merge in another order in the file"
            return


def _special(ours: Vocabulary, there: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    defaults = dict(DEFAULT_IDS[ours.model])
    if there.get(PRE) in NO_BOS:
        del defaults["bos"]
    for name in SPECIAL_KEYS:
        key = id_key(name)
        wanted = ours.special.get(name)
        found = there.get(key, defaults.get(name))
        unused = wanted is None and key not in there  # the model has no such token, llama.cpp one that it never takes
        if found != wanted and not unused:
            yield key, _line(there.get(key), wanted)


def _flags(ours: Vocabulary, there: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    spaced = ours.model == "llama"
    flags = {
        "add_bos_token": (ours.add_bos, adds_bos(ours.model, str(there.get(PRE, "")))),
        "add_eos_token": (ours.add_eos, False),
        "add_space_prefix": (ours.space_prefix, spaced),
    }
    for name, (wanted, missing) in flags.items():
        key = f"{PREFIX}{name}"
        if there.get(key, missing) != wanted:
            yield key, _line(there.get(key), wanted)
    for key, off in OFF.items():
        if there.get(key, off) != off:
            yield key, _line(there[key], "no such entry")


def _line(there: Any, wanted: Any) -> str:
    return f"{there!r} in the file, {wanted!r} in the model"


def _template_line(there: Any, wanted: Any) -> str:
    if there and wanted:
        return f"another of {len(str(there))} characters in the file, one of {len(str(wanted))} in the model"
    return "is in the file but not in the model" if there else "is in the model but not in the file"


def _unequal(ours: Sequence[Any], there: Sequence[Any], places: Iterable[int]) -> str:
    """Which of the `places` are not equal in two lists, in a line; "" for none."""
    if len(there) != len(ours):
        return f"{len(there)} in the file, {len(ours)} in the model"
    wrong = [at for at in places if ours[at] != there[at]]
    if not wrong:
        return ""
    at = wrong[0]
    return f"{len(wrong)} differ, the first at {at}: {there[at]!r} in the file, {ours[at]!r} in the model"
