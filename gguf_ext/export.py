"""`sqft export gguf`: a model as a GGUF file with the very same weights. The order:

1. find the layout: by the table of its class, or by a template (`layout`)
2. read the tokenizer (`described`), plan the type of every tensor (`write.plan`), gather the metadata
3. refuse what llama.cpp could not load (`run.loadable`)
4. write the file beside the target, one tensor after the other (`write.file`), in parts where asked for (`write.split`)
5. reopen and compare it (`verify.tensors`), then rename it
6. let llama.cpp cut some hundred texts with it (`verify.trial`)
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_ext.arch import Entry
from gguf_ext.described import describe, file_entries, tokenizer_notes
from gguf_ext.errors import (
    MissingTokenizerError,
    TemplateError,
    UnsupportedArchitectureError,
    VerificationError,
)
from gguf_ext.gguf_package import require_gguf
from gguf_ext.layout import Layout, find_layout
from gguf_ext.memory import ModelInMemory
from gguf_ext.parts import COUNT, INDEX, TENSORS
from gguf_ext.reader import GGUFFile
from gguf_ext.run.loadable import unloadable
from gguf_ext.settings import Options
from gguf_ext.template.tensors import EMBEDDING, check_tokens
from gguf_ext.tokenizer.keys import MODEL, PRE
from gguf_ext.verify.tensors import VerifyReport, compare
from gguf_ext.verify.tokenizer import DECISIVE, compare_tokenizer
from gguf_ext.write.file import header_bytes, write_tensors
from gguf_ext.write.plan import Planned, plan, shrinkable
from gguf_ext.write.split import check_target, part_paths, remove_parts, split_parts, write_parts
from gguf_ext.write.tensors import spare_biases
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError
from sqft_plugins.progress import say

__all__ = ["ExportReport", "Options", "export_gguf", "export_model"]

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    path: the file, or the first of its parts.
    parts: all of them; empty where there is but one file.
    architecture: llama.cpp's.
    tokenizer: llama.cpp's model/pre, such as "gpt2/llama-bpe".
    types: type name → number of tensors.
    verified: tensors seen to be equal.
    pruned: weights that the mask prunes, all seen to be 0 in the file.
    exact: whether no weight is rounded.
    largest_error: the largest |difference| of a weight.
    bytes: of all parts.
    seconds: of the whole export.
    unchecked: fields of config.json and keys of a template that were compared with nothing.
    notes: what llama.cpp does otherwise than the model's tokenizer, a line each.
    """

    path: str
    parts: list[str]
    architecture: str
    tokenizer: str
    types: dict[str, int]
    verified: int
    pruned: int
    exact: bool
    largest_error: float
    bytes: int
    seconds: float
    unchecked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_gguf(model: str | Path, target: str | Path, *, overwrite: bool = False, **options: Any) -> ExportReport:
    """Writes a model folder, float or INT4, as a GGUF file with the very same weights.

    options: the fields of `Options`. Raises a GGUFError, CheckpointError, OutputExistsError or DependencyError before a
    byte is written; after an error while writing there is no target, or the old one.
    """
    chosen = Options(**options)
    checked = check_target(target, overwrite, chosen.limit is not None)
    require_gguf()
    return _export(ModelFolder(model), None, checked, overwrite, chosen)


def export_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    target: str | Path,
    *,
    like: str | Path | None = None,
    name: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ExportReport:
    """Writes a model that is in memory: the file that `export_gguf` would write of the folder it was saved as, to the
    bit, without the folder.

    model: float, packed INT4, or float with the INT4 grid on its layers, as `load_model` and a quantization-aware merge
        leave it.
    tokenizer: may be None with `template_gguf`.
    target: the file to write.
    like: a folder whose stamp and masks are the model's, so that the file says what was done and its zeros are checked.
    name: for `general.name`.
    overwrite: whether to replace what is at `target`.
    options: the fields of `Options`.

    Raises ModelInMemoryError and what `export_gguf` raises.
    """
    chosen = Options(**options)
    checked = check_target(target, overwrite, chosen.limit is not None)
    require_gguf()
    if tokenizer is None and chosen.template_gguf is None:
        raise MissingTokenizerError("tokenizer=None: give the tokenizer of the model, or a template_gguf")
    return _export(ModelInMemory(model, like, name), tokenizer, checked, overwrite, chosen)


def _export(folder: ModelFolder, tokenizer: Any, target: Path, overwrite: bool, options: Options) -> ExportReport:
    """tokenizer: of a model in memory, else None. target: where nothing is, but for `overwrite`."""
    start = time.monotonic()

    # which tensor stands where, and what the file says of itself
    template = None if options.template_gguf is None else GGUFFile(options.template_gguf)
    layout = find_layout(folder, template)
    if template is not None:
        _check_same_base(template, layout.differences)
    _log(folder, layout)
    described = describe(folder, tokenizer, layout, template, options.pre)
    planned = plan(folder, layout.tensors, options.float_type, options.embedding_type, options.rounding)
    entries = file_entries(folder, planned, layout, described)

    # the rest of what can be refused
    _check_tokens(folder, planned, layout, template)
    _check_loadable(folder, layout, entries)

    # write, reopen, compare, rename
    if options.embedding_type == "auto" and (line := shrinkable(planned)):
        say(line)
    if options.limit is None:
        parts = [planned]
    else:
        parts = split_parts(planned, header_bytes(layout.architecture, entries), options.limit)
    verified = _write(folder, layout, entries, parts, target, overwrite)
    if len(parts) == 1 and options.limit is not None and overwrite:
        remove_parts(target)  # of an earlier export that did not fit one file

    # report
    written = part_paths(target, len(parts))
    metadata = {entry.key: entry.value for entry in entries}
    return ExportReport(
        path=str(written[0]),
        parts=[str(path) for path in written] if len(written) > 1 else [],
        architecture=layout.architecture,
        tokenizer=f"{metadata.get(MODEL)}/{metadata.get(PRE, 'default')}",
        types=dict(Counter(tensor.type.name for tensor in planned)),
        verified=verified.equal,
        pruned=verified.pruned,
        exact=verified.exact,
        largest_error=verified.largest_error,
        bytes=sum(path.stat().st_size for path in written),
        seconds=round(time.monotonic() - start, 2),
        unchecked=layout.unchecked,
        notes=tokenizer_notes(written[0], entries, described, layout),
    )


def _log(folder: ModelFolder, layout: Layout) -> None:
    if layout.unchecked:
        say(f"compared with nothing, so look at them yourself: {', '.join(layout.unchecked)}")
    if layout.note:
        say(layout.note)
    if biases := spare_biases(folder, layout.tensors):
        say(f"{len(biases)} biases of INT4 layers are all 0 and left out, as of {biases[0]}")


def _check_tokens(folder: ModelFolder, planned: list[Planned], layout: Layout, template: GGUFFile | None) -> None:
    """Raises TemplateError for a tokenizer of a template that is not the model's, CheckpointError for another number of
    tokens in config.json than the embedding has rows."""
    rows = next((tensor.shape[0] for tensor in planned if tensor.name == EMBEDDING), 0)
    if template is not None:
        check_tokens(template, rows)
        if not isinstance(folder, ModelInMemory):
            found = compare_tokenizer(folder, layout, template, tried=False)[1]
            _check_same_base(template, [item for item in found if item[0] in DECISIVE])
    elif layout.config is not None and rows != layout.config["vocab_size"]:
        raise CheckpointError(
            f"model {folder.path} has {rows} rows in its embedding, but vocab_size={layout.config['vocab_size']} in "
            "config.json: copy the whole model again"
        )


def _check_same_base(template: GGUFFile, differences: Sequence[tuple[str, str]]) -> None:
    """Raises TemplateError for the first of what a template and the model say otherwise: key, line."""
    if differences:
        key, line = differences[0]
        raise TemplateError(f"template {template.path} is not of this model's base: {key}: {line}: give another file")


def _check_loadable(folder: ModelFolder, layout: Layout, entries: list[Entry]) -> None:
    """Raises UnsupportedArchitectureError for a model whose file llama.cpp could not load."""
    metadata = {entry.key: entry.value for entry in entries}
    if reason := unloadable({"general.architecture": layout.architecture, **metadata}):
        raise UnsupportedArchitectureError(f"llama.cpp cannot load model {folder.path}: {reason}")


def _write(
    folder: ModelFolder, layout: Layout, entries: list[Entry], parts: list[list[Planned]], target: Path, overwrite: bool
) -> VerifyReport:
    """Of each part its tensors → what was verified of all. The metadata stands in the first."""
    count, tensors = len(parts), sum(map(len, parts))
    with write_parts(target, count, overwrite) as paths:
        for index, (path, planned) in enumerate(zip(paths, parts, strict=True)):
            own = [Entry(INDEX, index, "uint16"), Entry(COUNT, count, "uint16"), Entry(TENSORS, tensors, "int32")]
            if count == 1:
                own = []
            write_tensors(path, layout.architecture, own if index else entries + own, planned, folder)

        report = compare(folder, layout, GGUFFile(paths[0]))
        if not report.ok:
            raise VerificationError(
                f"--out {target}: {report.first_difference}: nothing was written, report this as a bug"
            )
    return report
