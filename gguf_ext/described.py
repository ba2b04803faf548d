"""What a file says beside its weights: the tokenizer of the model or of a template, and all metadata together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gguf_ext.arch import Entry
from gguf_ext.layout import Layout
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.ending import END_TOKENS
from gguf_ext.tokenizer.limits import end_limits
from gguf_ext.tokenizer.pretokenizer import warn_of_unknown_name
from gguf_ext.tokenizer.read import from_tokenizer, read_vocabulary
from gguf_ext.tokenizer.stripping import rule_in
from gguf_ext.verify.trial import try_tokenizer
from gguf_ext.write.metadata import EXACT, WRITER, general_entries
from gguf_ext.write.plan import Planned
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.progress import say


class Described(NamedTuple):
    """The tokenizer of a file.

    entries: `tokenizer.*`, and what a template says of its base.
    rule: what llama.cpp shall find in the name of the model, see `tokenizer.stripping`.
    limits: what llama.cpp does otherwise, a line each.
    reference: text → token ids of the model's tokenizer; None where it cannot be run.
    """

    entries: list[Entry]
    rule: str
    limits: tuple[str, ...] = ()
    reference: Callable[[str], list[int]] | None = None


def describe(
    folder: ModelFolder, tokenizer: Any, layout: Layout, template: GGUFFile | None, pre: str | None
) -> Described:
    """The tokenizer of the template where there is one, else the model's.

    tokenizer: of transformers, for a model in memory; None reads that of the folder.
    pre: llama.cpp's name of the pre-tokenizer; None looks it up.
    """
    if template is not None:
        items = template.metadata.items()
        entries = [Entry(key, value, template.kinds[key]) for key, value in items if key.startswith("tokenizer.")]
        return Described(layout.described if layout.config is None else entries, rule_in(template.metadata))

    assert layout.config is not None  # it is None of a template only
    say(f"reading the tokenizer of {folder.path}")
    if pre is not None:
        warn_of_unknown_name(pre)
    vocabulary = (
        read_vocabulary(folder.path, layout.config, pre)
        if tokenizer is None
        else from_tokenizer(tokenizer, str(folder.path), layout.config, pre)
    )
    return Described(vocabulary.entries(), vocabulary.rule, vocabulary.limits, vocabulary.reference)


def file_entries(folder: ModelFolder, planned: list[Planned], layout: Layout, described: Described) -> list[Entry]:
    """The metadata of the file, each key once: what we say of it before what a template says."""
    error = max((tensor.error for tensor in planned), default=0.0)
    entries = [*general_entries(folder, planned, described.rule), *layout.entries, WRITER]
    entries.append(Entry(EXACT, not error, "bool"))
    if error:
        entries.append(Entry("sqft.largest_error", error, "float32"))

    known = {entry.key for entry in entries}
    return entries + [entry for entry in described.entries if entry.key not in known]


def tokenizer_notes(file: Path, entries: Sequence[Entry], described: Described, layout: Layout) -> list[str]:
    """What the user must know of the tokenizer of a written file, a line each; they are logged as well."""
    if layout.config is None:
        return []

    metadata = {entry.key: entry.value for entry in entries}
    notes = [*described.limits, *end_limits(metadata, layout.config[END_TOKENS])]
    if described.reference is not None and (line := try_tokenizer(file, metadata, described.reference)[1]):
        notes.append(line)

    for note in notes:
        say(note)
    return notes
