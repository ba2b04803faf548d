"""Writing a GGUF file: planned first, streamed tensor by tensor, reopened and verified, then renamed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gguf_ext.arch import Entry
from gguf_ext.errors import (
    GGUFError,
    MissingTokenizerError,
    TemplateError,
    UnsupportedArchitectureError,
    VerificationError,
)
from gguf_ext.gguf_package import require_gguf
from gguf_ext.memory import ModelInMemory
from gguf_ext.reader import GGUFFile
from gguf_ext.run.loadable import unloadable
from gguf_ext.template.tensors import check_tokens
from gguf_ext.tokenizer.ending import END_TOKENS, unplaced
from gguf_ext.tokenizer.keys import MODEL, PRE
from gguf_ext.tokenizer.limits import end_limit
from gguf_ext.tokenizer.pretokenizer import tell_unknown_name
from gguf_ext.tokenizer.read import from_tokenizer, read_vocabulary
from gguf_ext.tokenizer.stripping import rule_in
from gguf_ext.tokenizer.trial import try_tokenizer
from gguf_ext.verify.tensors import EXACT, VerifyReport, compare
from gguf_ext.verify.tokenizer import DECISIVE, compare_tokenizer
from gguf_ext.write.file import header_bytes, write_tensors
from gguf_ext.write.layout import Layout, find_layout
from gguf_ext.write.metadata import general_entries, sqft_entries
from gguf_ext.write.plan import Planned, plan
from gguf_ext.write.split import COUNT, INDEX, TENSORS, check_target, parse_size, remove_parts, split_parts, write_parts
from gguf_ext.write.tensors import spare_biases
from gguf_ext.write.transcode import EMBEDDING_TYPES, FLOAT_TYPES, check_choice
from sqft_plugins.checkpoint import ModelFolder, write_file
from sqft_plugins.errors import CheckpointError
from sqft_plugins.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExportReport:
    """path: the file, or the first of its `parts`. bytes (of all parts) and seconds. types: type name → number of
    tensors. tokenizer: llama.cpp's model/pre. pruned: weights that the mask prunes, all seen to be 0 in the file.
    verified: tensors seen to be equal. exact: whether no weight is rounded; largest_error: the largest |difference|.
    unchecked: fields of config.json and keys of a template that were compared with nothing. notes: what llama.cpp does
    otherwise than the model's tokenizer, a line each."""

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


@dataclass(frozen=True)
class Options:
    """How to export. Raises GGUFError for a value that is none.

    pre: llama.cpp's name of the pre-tokenizer, where the tokenizer does not tell. float_type: what matrices that are
    not INT4 become: "auto" (the narrowest of F16, BF16, F32 that holds every value), "f32", "f16" or "bf16".
    embedding_type: the same of the token embedding and the output head, and "q8_0"; "auto" leaves them to float_type.
    rounding: "allow" rounds INT4 scales that fp16 does not hold, "refuse" refuses them. split_max_size: bytes, or such
    as "2G"; a larger file is written in parts. template_gguf: a GGUF file of the same base that gives the tokenizer
    and, for a model that has no table, names, order and hyper-parameters.
    """

    pre: str | None = None
    float_type: str = "auto"
    embedding_type: str = "auto"
    rounding: str = "refuse"
    split_max_size: int | str | None = None
    template_gguf: str | Path | None = None

    def __post_init__(self) -> None:
        check_choice("float_type", self.float_type, FLOAT_TYPES)
        check_choice("embedding_type", self.embedding_type, EMBEDDING_TYPES)
        check_choice("rounding", self.rounding, ("refuse", "allow"))
        if self.pre is not None and self.template_gguf is not None:
            raise GGUFError(f"--pre {self.pre}: the template has a tokenizer with its own: leave one of both out")
        _ = self.limit

    @property
    def limit(self) -> int | None:
        """Bytes of a file, None where there is no limit."""
        return None if self.split_max_size is None else parse_size(str(self.split_max_size))


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
    leave it. tokenizer: may be None with `template_gguf`. like: a folder whose stamp and masks are the model's, so that
    the file tells what was done and its zeros are checked. name: for `general.name`. options: the fields of `Options`.
    Raises ModelInMemoryError and what `export_gguf` raises.
    """
    chosen = Options(**options)
    checked = check_target(target, overwrite, chosen.limit is not None)
    require_gguf()
    if tokenizer is None and chosen.template_gguf is None:
        raise MissingTokenizerError("tokenizer=None: give the tokenizer of the model, or a template_gguf")
    return _export(ModelInMemory(model, like, name), tokenizer, checked, overwrite, chosen)


def _export(folder: ModelFolder, tokenizer: Any, target: Path, overwrite: bool, options: Options) -> ExportReport:
    start = time.monotonic()
    template = None if options.template_gguf is None else GGUFFile(options.template_gguf)
    layout = find_layout(folder, template)
    if template is not None:
        _check_same_base(template, layout.differences)
    if layout.unchecked:
        say(f"compared with nothing, so look at them yourself: {', '.join(layout.unchecked)}")
    if layout.note:
        say(layout.note)
    if biases := spare_biases(folder, layout.tensors):
        say(f"{len(biases)} biases of INT4 layers are all 0 and left out, as of {biases[0]}")
    described = _vocabulary(folder, tokenizer, layout, template, options)
    planned = plan(folder, layout.tensors, options.float_type, options.embedding_type, options.rounding)
    rows = next((tensor.shape[0] for tensor in planned if tensor.name == "token_embd.weight"), 0)
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
    entries = _entries(folder, planned, layout, described)
    _check_loadable(folder, layout, entries)
    parts = [planned]
    if options.limit is not None:
        parts = split_parts(planned, header_bytes(layout.architecture, entries), options.limit)
    if len(parts) == 1:
        with write_file(target, overwrite) as temporary:
            write_tensors(temporary, layout.architecture, entries, planned, folder)
            report = _verified(folder, layout, temporary, target)
        if options.limit is not None and overwrite:
            remove_parts(target)  # of an earlier export that did not fit one file
        written = [target]
    else:
        with write_parts(target, len(parts)) as paths:
            for index, (path, tensors) in enumerate(zip(paths, parts, strict=True)):
                split = _split_entries(index, len(parts), len(planned))
                write_tensors(path, layout.architecture, [*(entries if not index else []), *split], tensors, folder)
            report = _verified(folder, layout, paths[0], target)
        written = [target.with_name(path.name) for path in paths]
    told = {entry.key: entry.value for entry in entries}
    return ExportReport(
        path=str(written[0]),
        parts=[str(path) for path in written] if len(written) > 1 else [],
        architecture=layout.architecture,
        tokenizer=f"{told.get(MODEL)}/{told.get(PRE, 'default')}",
        types=dict(Counter(tensor.type.name for tensor in planned)),
        verified=report.equal,
        pruned=report.pruned,
        exact=report.exact,
        largest_error=report.largest_error,
        bytes=sum(path.stat().st_size for path in written),
        seconds=round(time.monotonic() - start, 2),
        unchecked=layout.unchecked,
        notes=_notes(written[0], entries, described, layout),
    )


def _check_same_base(template: GGUFFile, differences: Sequence[tuple[str, str]]) -> None:
    """Raises TemplateError for the first of what a template and the model say otherwise: key, line."""
    if differences:
        key, line = differences[0]
        raise TemplateError(f"template {template.path} is not of this model's base: {key}: {line}: give another file")


class _Described(NamedTuple):
    """The `tokenizer.*` entries, and what a template says of its base. rule: what llama.cpp shall find in the name.
    limits: what llama.cpp does otherwise, a line each. reference: text → token ids of the model's tokenizer."""

    entries: list[Entry]
    rule: str
    limits: tuple[str, ...] = ()
    reference: Callable[[str], list[int]] | None = None


def _vocabulary(
    folder: ModelFolder, tokenizer: Any, layout: Layout, template: GGUFFile | None, options: Options
) -> _Described:
    if template is not None:
        items = template.metadata.items()
        entries = [Entry(key, value, template.kinds[key]) for key, value in items if key.startswith("tokenizer.")]
        return _Described(layout.described if layout.config is None else entries, rule_in(template.metadata))
    assert layout.config is not None  # it is None of a template only

    say(f"reading the tokenizer of {folder.path}")
    if options.pre is not None:
        tell_unknown_name(options.pre)
    if tokenizer is not None:
        vocabulary = from_tokenizer(tokenizer, str(folder.path), layout.config, options.pre)
    else:
        vocabulary = read_vocabulary(folder.path, layout.config, options.pre)
    return _Described(vocabulary.entries(), vocabulary.rule, vocabulary.limits, vocabulary.reference)


def _notes(file: Path, entries: Sequence[Entry], described: _Described, layout: Layout) -> list[str]:
    """What the user must know of the tokenizer of a written file, a line each; they are said as well."""
    if layout.config is None:
        return []
    metadata = {entry.key: entry.value for entry in entries}
    notes = list(described.limits)
    ends = layout.config[END_TOKENS]
    if lost := unplaced(ends, metadata):
        texts = ", ".join(map(repr, lost))
        notes.append(f"llama.cpp has no place for all end tokens of the model: it will not stop at {texts}")
    if ends and (limit := end_limit(metadata, ends)):
        notes.append(limit)
    if described.reference is not None and (line := try_tokenizer(file, metadata, described.reference)):
        notes.append(line)
    for note in notes:
        say(note)
    return notes


def _entries(folder: ModelFolder, planned: list[Planned], layout: Layout, described: _Described) -> list[Entry]:
    """The metadata of the file, each key once: what we say of it before what a template says."""
    error = max((tensor.error for tensor in planned), default=0.0)
    entries = general_entries(folder, planned, described.rule) + layout.entries
    entries += [entry for entry in sqft_entries(folder) if entry.key == "sqft.version"]
    entries.append(Entry(EXACT, not error, "bool"))
    if error:
        entries.append(Entry("sqft.largest_error", error, "float32"))
    known = {entry.key for entry in entries}
    return entries + [entry for entry in described.entries if entry.key not in known]


def _check_loadable(folder: ModelFolder, layout: Layout, entries: list[Entry]) -> None:
    """Raises UnsupportedArchitectureError for a model whose file llama.cpp could not load."""
    told = {entry.key: entry.value for entry in entries}
    if reason := unloadable({"general.architecture": layout.architecture, **told}):
        raise UnsupportedArchitectureError(f"llama.cpp cannot load model {folder.path}: {reason}")


def _split_entries(index: int, count: int, tensors: int) -> list[Entry]:
    return [Entry(INDEX, index, "uint16"), Entry(COUNT, count, "uint16"), Entry(TENSORS, tensors, "int32")]


def _verified(folder: ModelFolder, layout: Layout, file: Path, target: Path) -> VerifyReport:
    report = compare(folder, layout, GGUFFile(file))
    if not report.ok:
        raise VerificationError(f"--out {target}: {report.first_difference}: nothing was written, report this as a bug")
    return report
