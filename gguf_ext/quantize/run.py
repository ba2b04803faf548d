"""The float file, llama.cpp's quantizer over it, and what became of the weights."""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gguf_ext.errors import GGUFError, RuntimeFailedError
from gguf_ext.export import export_gguf
from gguf_ext.layout import find_layout
from gguf_ext.quantize.compensate import check_zeros, compensate
from gguf_ext.quantize.importance import importance_matrix
from gguf_ext.quantize.names import FILE_TYPES, GPTQ, METHODS, OWN, check_pruned, file_type
from gguf_ext.reader import GGUFFile
from gguf_ext.run.backend import forget_errors, last_error, library
from gguf_ext.write.metadata import EXACT
from gguf_ext.write.split import check_target
from sqft_plugins.checkpoint import ModelFolder, write_file
from sqft_plugins.checkpoint.files import scratch_folder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.compress.float_model import Calibration, FloatModel
from sqft_plugins.compress.report import Row, total
from sqft_plugins.hardware import cores


@dataclass(frozen=True)
class QuantizeReport:
    """What was written.

    path: the file. bytes: of it.
    type: llama.cpp's mix. types: type of tensors → the weights that are of it; a row that no block of 256 divides gets
        another type than the mix has.
    method: "gptq" or "llama.cpp".
    calibration: where the text came from; None where none was read.
    weighted: layers that the importance matrix knows.
    sparsity: the fraction of the linear layers' weights that is held at 0; 0 for a dense model.
    worst: of GPTQ, the layer with the largest error, as in `sqft_plugins.compress.report`; else None.
    seconds: of all.
    """

    path: str
    type: str
    types: dict[str, int]
    method: str
    calibration: str | None
    weighted: int
    sparsity: float
    worst: dict[str, Any] | None
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantize_gguf(
    model: str | Path,
    target: str | Path,
    *,
    type: str = "Q4_K_M",
    method: str = OWN,
    importance: bool = True,
    calibration: str | Path | None = None,
    sequences: int = 32,
    length: int = 128,
    overwrite: bool = False,
) -> QuantizeReport:
    """Writes a float model folder as a GGUF file in one of llama.cpp's mixes of types.

    type: the mix, such as "Q4_0".
    method: "llama.cpp", what `llama-quantize` does; or "gptq": its scales, but other codes, and zeros that were pruned
        stay.
    importance: whether its quantizer weighs each input as much as it is used in the calibration text.
    calibration, sequences, length: as of `quantize_folder`.

    Raises a GGUFError or CheckpointError before any work for a model that is quantized, and for a pruned one whose
    zeros the type or the method would lose; RuntimeFailedError where llama.cpp refuses. The float file that it reads
    stands beside the target for so long.
    """
    start = time.monotonic()

    # everything that can be refused
    mix, texts = file_type(type), Calibration(calibration, sequences, length)
    if method not in METHODS:
        raise GGUFError(f"method={method!r} does not make {mix}: use {' or '.join(METHODS)}")
    path = check_target(target, overwrite)
    folder = ModelFolder(local_folder(model))
    sparse = _check(folder, mix, method, importance)
    tokens = None
    if method == GPTQ:
        source = FloatModel(folder.path)
        tokens = texts.tokens(source.path, "hessian", source.skeleton)

    # the float file, llama.cpp's quantizer over it, and other codes
    rows: list[Row] = []
    with scratch_folder(path) as place:
        whole, made = place / "float.gguf", place / "made.gguf"
        export_gguf(folder.path, whole)
        matrix = _by_tensor(folder, texts) if importance else {}
        _run(whole, made, FILE_TYPES[mix], matrix)
        whole.unlink()
        if sparse:
            check_zeros(source, made)
        if tokens is not None:
            rows = compensate(source, made, tokens, keep_zeros=sparse)
        weights: Counter[str] = Counter()
        for info in GGUFFile(made).tensors.values():
            weights[info.type_name] += math.prod(info.shape)
        with write_file(path, overwrite) as temporary:
            os.replace(made, temporary)

    return QuantizeReport(
        path=str(path),
        type=mix,
        types=dict(weights.most_common()),
        method=method,
        calibration=str(calibration or "built-in") if importance or rows else None,
        weighted=len(matrix),
        sparsity=total(rows, "sparsity") if sparse else 0.0,
        worst=max(rows, key=lambda row: row["error"], default=None),
        bytes=path.stat().st_size,
        seconds=round(time.monotonic() - start, 2),
    )


def _check(folder: ModelFolder, mix: str, method: str, importance: bool) -> bool:
    """Whether the model is pruned. Raises GGUFError for a model with codes, and where zeros would be lost."""
    if folder.files and folder.grid is not None:
        raise GGUFError(
            f"model {folder.path} is {folder.grid.label} already: give the float model that it was made from, or write "
            "its very codes with `sqft export gguf`, where they are integers"
        )
    sparse = folder.stamp is not None or bool(folder.masks)
    if sparse:
        check_pruned(f"model {folder.path}", mix, method, importance)
    return sparse


def _by_tensor(folder: ModelFolder, calibration: Calibration) -> dict[str, Tensor]:
    """The importance matrix under the names of the file."""
    found = importance_matrix(folder.path, calibration)
    names = {tensor.owner: tensor.name for tensor in find_layout(folder).tensors if tensor.is_weight}
    return {names[module]: values for module, values in found.items() if module in names}


def _run(source: Path, target: Path, file_type: int, matrix: Mapping[str, Tensor]) -> None:
    """llama.cpp's quantizer. Raises RuntimeFailedError."""
    c = library()
    settings = c.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = file_type, cores()

    # arrays of C, which live until the call is over
    rows = {name: np.ascontiguousarray(values.numpy(), np.float32) for name, values in matrix.items()}
    entries = (c.llama_model_imatrix_data * (len(rows) + 1))()
    for entry, (name, values) in zip(entries, rows.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if rows:
        settings.imatrix = entries

    # what the float file says of itself is true no longer
    inexact = (c.llama_model_kv_override * 2)()
    inexact[0].tag, inexact[0].key, inexact[0].value.val_bool = c.LLAMA_KV_OVERRIDE_TYPE_BOOL, EXACT.encode(), False
    settings.kv_overrides = inexact

    forget_errors()
    if c.llama_model_quantize(os.fsencode(source), os.fsencode(target), settings):
        raise RuntimeFailedError(f"llama.cpp cannot quantize {source.name} ({last_error()}): try another --grid")
