"""Writing a GGUF file: planned first, streamed tensor by tensor, reopened and verified, then renamed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gguf_ext.arch import Entry, find_architecture, read_config
from gguf_ext.errors import VerificationError, missing_package
from gguf_ext.metadata import general_entries, model_entries, sqft_entries
from gguf_ext.plan import Planned, plan, sources, zero_biases
from gguf_ext.transcode import check_float_type
from gguf_ext.verify import verify_gguf
from gguf_ext.vocab import read_vocabulary
from sqft_plugins.checkpoint import ModelFolder, check_output, write_file
from sqft_plugins.progress import say, track


@dataclass(frozen=True)
class ExportReport:
    """path, bytes and seconds of the file. types: type name → number of tensors. tokenizer: llama.cpp's model/pre.
    pruned: weights that the mask prunes, all seen to be 0 in the file. verified: tensors seen to be equal."""

    path: str
    architecture: str
    tokenizer: str
    types: dict[str, int]
    verified: int
    pruned: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_gguf(
    model: str | Path,
    target: str | Path,
    *,
    overwrite: bool = False,
    pre: str | None = None,
    float_type: str = "auto",
) -> ExportReport:
    """Writes a model folder, float or INT4, as a GGUF file with the very same weights.

    pre: llama.cpp's name of the pre-tokenizer, where the tokenizer does not tell. float_type: what matrices that are
    not INT4 become: "auto" (the narrowest of F16, BF16, F32 that holds every value), "f32", "f16" or "bf16". Raises a
    GGUFError, CheckpointError, OutputExistsError or DependencyError before a byte is written; after an error
    while writing there is no target, or the old one.
    """
    start = time.monotonic()
    check_float_type(float_type)
    target = check_output(target, overwrite)
    require_gguf()
    folder = ModelFolder(model)
    architecture = find_architecture(folder.config, folder.path)
    config = read_config(folder.path, architecture)
    found = sources(folder, architecture, config)
    if note := architecture.note(config):
        say(note)
    if biases := zero_biases(folder, found):
        say(f"{len(biases)} biases of INT4 layers are all 0 and left out, as of {biases[0]}")
    say(f"reading the tokenizer of {folder.path}")
    vocabulary = read_vocabulary(folder.path, config, pre)
    planned = plan(folder, found, float_type)
    entries = general_entries(folder, planned) + model_entries(folder, architecture, config)
    entries += [entry for entry in sqft_entries(folder) if entry.key == "sqft.version"] + vocabulary.entries()
    with write_file(target, overwrite) as temporary:
        write_tensors(temporary, architecture.name, entries, planned, folder)
        report = verify_gguf(folder.path, temporary)
        if not report.ok:
            raise VerificationError(
                f"--out {target}: {report.first_difference}: nothing was written, report this as a bug"
            )
    types = Counter(tensor.type.name for tensor in planned)
    return ExportReport(
        path=str(target),
        architecture=architecture.name,
        tokenizer=f"{vocabulary.model}/{vocabulary.pre}",
        types=dict(types),
        verified=report.equal,
        pruned=report.pruned,
        bytes=target.stat().st_size,
        seconds=round(time.monotonic() - start, 2),
    )


def write_tensors(
    path: Path, architecture: str, entries: list[Entry], planned: list[Planned], folder: ModelFolder
) -> None:
    """The file itself, streamed: one tensor in memory."""
    gguf = require_gguf()
    writer = gguf.GGUFWriter(path, architecture)
    value_type = gguf.GGUFValueType
    items = {
        "strings": value_type.STRING,
        "floats": value_type.FLOAT32,
        "ints": value_type.INT32,
        "bools": value_type.BOOL,
    }
    try:
        for key, value, kind in entries:
            if kind in items:
                if value:  # GGUF has no empty arrays
                    writer.add_key_value(key, value, value_type.ARRAY, sub_type=items[kind])
            else:
                writer.add_key_value(key, value, value_type[kind.upper()])
        for tensor in planned:
            kind = gguf.GGMLQuantizationType(int(tensor.type))
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (out,) = writer.fout
        writer.write_padding(out, out.tell())
        for tensor in track(planned, "writing the tensors"):
            written = 0
            for piece in tensor.pieces(folder):
                piece.tofile(out)
                written += piece.nbytes
            assert written == tensor.bytes, (tensor.name, written, tensor.bytes)
            writer.write_padding(out, written)
    finally:
        writer.close()


def require_gguf() -> Any:
    """The gguf package. Raises DependencyError."""
    try:
        import gguf
    except ImportError as error:
        raise missing_package("gguf") from error
    return gguf
