"""The float file, llama.cpp's quantizer over it, and what became of the weights."""

from __future__ import annotations

import ctypes
import math
import os
import tempfile
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
from gguf_ext.quantize.importance import importance_matrix
from gguf_ext.quantize.settings import FILE_TYPES, QuantizeOptions
from gguf_ext.reader import GGUFFile
from gguf_ext.run.backend import forget_errors, last_error, library
from gguf_ext.write.metadata import EXACT
from gguf_ext.write.split import check_target
from sqft_plugins.checkpoint import ModelFolder, write_file
from sqft_plugins.compress.float_model import Calibration
from sqft_plugins.hardware import cores


@dataclass(frozen=True)
class QuantizeReport:
    """What was written.

    path: the file. bytes: of it.
    type: llama.cpp's mix. types: type of tensors → the weights that are of it; a row that no block of 256 divides gets
        another type than the mix has.
    calibration: where the text of the importance matrix came from; None without one.
    weighted: layers that the matrix knows.
    seconds: of all.
    """

    path: str
    type: str
    types: dict[str, int]
    calibration: str | None
    weighted: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def quantize_gguf(model: str | Path, target: str | Path, *, overwrite: bool = False, **options: Any) -> QuantizeReport:
    """Writes a float model folder as a GGUF file in one of llama.cpp's mixes of types, as `llama-quantize` does.

    options: the fields of `QuantizeOptions`. Raises a GGUFError or CheckpointError before any work for a model that is
    INT4 or pruned, whose codes or zeros would be lost; RuntimeFailedError where llama.cpp refuses. The float file that
    it reads stands beside the target for so long.
    """
    start = time.monotonic()
    chosen = QuantizeOptions(**options)
    path = check_target(target, overwrite)
    folder = ModelFolder(model)
    _check_float(folder)

    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=_made(path.parent)) as place:
        whole = Path(place) / "float.gguf"
        export_gguf(folder.path, whole)
        matrix: dict[str, Tensor] = {}
        if chosen.importance:
            matrix = _by_tensor(folder, Calibration(chosen.calibration, chosen.sequences, chosen.length))
        with write_file(path, overwrite) as temporary:
            _run(whole, temporary, FILE_TYPES[chosen.type], matrix)
            weights: Counter[str] = Counter()
            for info in GGUFFile(temporary).tensors.values():
                weights[info.type_name] += math.prod(info.shape)

    return QuantizeReport(
        path=str(path),
        type=chosen.type,
        types=dict(weights.most_common()),
        calibration=(chosen.calibration or "built-in") if chosen.importance else None,
        weighted=len(matrix),
        bytes=path.stat().st_size,
        seconds=round(time.monotonic() - start, 2),
    )


def _check_float(folder: ModelFolder) -> None:
    if folder.files and folder.grid is not None:
        raise GGUFError(f"model {folder.path} is INT4: `sqft export gguf` writes its very codes, use that")
    if folder.stamp is not None or folder.masks:
        raise GGUFError(
            f"model {folder.path} is pruned, and llama.cpp's quantizer does not keep zeros: run `sqft quantize`, then "
            "`sqft export gguf`"
        )


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
        raise RuntimeFailedError(f"llama.cpp cannot quantize {source.name} ({last_error()}): try another --type")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
