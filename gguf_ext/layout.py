"""Which tensor of a model stands where in its file, and the hyper-parameters that both must agree on: from a table, or,
where there is none for the model, from a GGUF file of the same base."""

from __future__ import annotations

from dataclasses import dataclass, field

from gguf_ext.arch import Architecture, Config, Entry, find_architecture, model_class, normalized, table_of
from gguf_ext.memory import config_of
from gguf_ext.reader import GGUFFile
from gguf_ext.template.check import check_template, limited
from gguf_ext.template.tensors import copied_entries, template_tensors
from gguf_ext.tokenizer.ending import END_TOKENS, end_tokens
from gguf_ext.write.metadata import stamp_entries
from gguf_ext.write.plan import check_order
from gguf_ext.write.tensors import PlacedTensor, place_tensors
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.progress import say


@dataclass(frozen=True)
class Layout:
    """What stands where in the file of a model.

    architecture: llama.cpp's.
    tensors: every tensor of the file.
    entries: what must agree between a model and its file, whenever it was written.
    described: further metadata, of a template.
    config: the configuration as the table reads it; None without a table.
    note: a line for the user, "" for none.
    differences: what config.json and a template say otherwise (key, line).
    unchecked: fields of config.json and keys of a template that were compared with nothing.
    """

    architecture: str
    tensors: list[PlacedTensor]
    entries: list[Entry]
    described: list[Entry] = field(default_factory=list)
    config: Config | None = None
    note: str = ""
    differences: list[tuple[str, str]] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def find_layout(folder: ModelFolder, template: GGUFFile | None = None) -> Layout:
    """The layout by the table of the model's class; of a class that has none by `template`. What a table refuses, no
    template lets in. Raises UnsupportedArchitectureError, UnmappedTensorError, TemplateError, ActOrderError."""
    check_order(folder)
    if template is not None and table_of(folder.config, folder.path) is None:
        return _of_template(folder, template)
    architecture = find_architecture(folder.config, folder.path)
    config = _config(folder, architecture)
    entries = architecture.metadata(config) + stamp_entries(folder)
    found = place_tensors(folder, architecture, config)
    return Layout(architecture.name, found, entries, config=config, note=architecture.note(config))


def _config(folder: ModelFolder, architecture: Architecture) -> Config:
    """As the architecture's table reads it, and the tokens that end a text."""
    config = normalized(config_of(folder), folder.path, architecture)
    return {**config, END_TOKENS: end_tokens(folder, config)}


def _of_template(folder: ModelFolder, template: GGUFFile) -> Layout:
    found = template_tensors(folder, template)
    name = model_class(folder.config)
    say(
        f"model {folder.path} is {name}, which has no table here: its tensors are named and ordered as in "
        f"{template.path}"
    )

    described, model = copied_entries(template)
    model += stamp_entries(folder)

    checked = check_template(folder, template)
    note = (
        f"sliding_window={checked.context} of the model does not exist in llama.cpp's graph: the file's context is at "
        "most that, up to which both compute the same"
        if checked.context
        else ""
    )

    return Layout(
        str(template.metadata["general.architecture"]),
        found,
        limited(model, checked.context),
        described,
        note=note,
        differences=checked.differences,
        unchecked=checked.unchecked,
    )
