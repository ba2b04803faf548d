"""The part of `sqft verify` that asks llama.cpp itself: whether it cuts texts with the file as it would with ours.

First the names by which llama.cpp strips white space beside special tokens (`tokenizer.stripping`), then a trial
(`verify.trial`), both in a file whose tokenizer is equal in all that can be read.
"""

from __future__ import annotations

from typing import NamedTuple

from gguf_ext.arch import Entry
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.stripping import fitting_name, stripped, stripped_in
from gguf_ext.tokenizer.vocabulary import Vocabulary
from gguf_ext.verify.trial import tried_otherwise

NAME = "general.name"


class Cuts(NamedTuple):
    """differences: metadata key, line. limits: what llama.cpp cuts otherwise than the model, in any file."""

    differences: list[tuple[str, str]]
    limits: list[str]


def compare_cuts(ours: Vocabulary, read: GGUFFile) -> Cuts:
    """Of a file that has the tokens and kinds of `ours`."""
    name = str(read.metadata.get(NAME, ""))
    wanted, found = stripped(ours.rule, ours.tokens, ours.kinds), stripped_in(read.metadata)
    if found is None:
        line = f"{name!r} makes llama.cpp look for tokens of Phi-3 that the file lacks: it cannot load the file"
        return Cuts([(NAME, line)], list(ours.limits))
    if wanted is not None and (other := sorted(wanted.differing(found))):
        line = (
            f"{name!r} decides in llama.cpp about white space beside {len(other)} special tokens, and wrongly, as of "
            f"{ours.tokens[other[0]]!r}: {fitting_name(name, ours.rule)!r} would do"
        )
        return Cuts([(NAME, line)], list(ours.limits))

    named = Entry(NAME, fitting_name(name, ours.rule), "string")
    architecture = str(read.metadata.get("general.architecture"))
    otherwise, limit = tried_otherwise(read.path, read.metadata, [named, *ours.entries()], architecture, ours.reference)
    differences = [("tokenizer", f"{otherwise}, and with the model's own rightly")] if otherwise else []
    return Cuts(differences, [*ours.limits, *([limit] if limit else [])])
