"""One weight at a time onto a grid of integers, the mask kept, written as `pack-quantized`.

The driver knows no method: a quantizer (hook `sqft_quantizers`) gets a weight, its mask, the grid and the statistic of
its inputs that it asked for, and returns codes. With a statistic, each layer sees quantized predecessors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sqft_plugins.cards.model import write_model_card
from sqft_plugins.checkpoint.files import check_output
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.int4 import combined_hash, digest_of, int4_config, int4_specs, int4_tensors
from sqft_plugins.checkpoint.stamp import GridStamp, Stamp, mask_file, write_stamp
from sqft_plugins.checkpoint.writer import FolderWriter, copy_side_files, write_config
from sqft_plugins.compress.drive import Compressed, Compression, InFolder
from sqft_plugins.compress.float_model import Calibration, FloatModel, describe_calibration, hash_of
from sqft_plugins.compress.fused import count_of
from sqft_plugins.compress.job import open_job
from sqft_plugins.compress.report import Report, relative_error, summed_up, total
from sqft_plugins.errors import GridError, MismatchError, SQFTError
from sqft_plugins.grid import PER_CHANNEL, QuantizedWeight, make_scale
from sqft_plugins.identity import content_hash
from sqft_plugins.mask import lost_zeros, mask_hash, nonzero_mask, sparsity_of
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Quantizer
from sqft_plugins.progress import say


@dataclass(kw_only=True)
class QuantizeReport(Report):
    """bits, group_size, symmetric: of the grid. left_out: weights of experts that stay float. sparsity: of the masks.
    zeros: the fraction of weights that are 0 on the grid. bytes: of the weight files."""

    bits: int
    group_size: int
    symmetric: bool
    left_out: int
    sparsity: float
    zeros: float
    bytes: int


def quantize_folder(
    model_path: str | Path,
    out: str | Path,
    method: str = "round-to-nearest",
    group_size: int = 32,
    symmetric: bool = True,
    overwrite: bool = False,
    calibration: str | Path | None = None,
    sequences: int = 32,
    length: int = 128,
    exclude: Sequence[str] = (),
    bits: int = 4,
) -> dict[str, Any]:
    """Quantizes the linear layers of the decoder blocks of a float model, experts among them and routers not, to INT4
    or another width and writes it to `out`, with tokenizer, mask and stamp → the fields of `QuantizeReport`. Holds one
    block in memory at a time; killed, it goes on where it was. The mask is the folder's own, else the nonzero pattern.

    model_path: a folder, or a name on the hub.
    method: a quantizer's name.
    group_size: 32, 64, 128 or -1 (per channel).
    symmetric: whether the zero point of every group is the middle code (8 of INT4).
    calibration: a text file, JSONL or the name of a data set, None for the built-in text.
    sequences, length: of the calibration batch, in tokens.
    exclude: patterns of layers that stay float.
    bits: of a code, 2, 3, 4, 5, 6 or 8.

    Raises SQFTError for a quantized source, GridError for a group that does not divide (all layers are checked before
    any work) or a weight that is not finite, MismatchError for weights that are nonzero where the mask prunes.
    """
    start = time.perf_counter()

    # everything that can be refused
    quantizer: Quantizer = get_manager().get("sqft_quantizers", method, "--method")
    check_output(out, overwrite)
    source = FloatModel(model_path, exclude)
    source.check_coverage("quantizing")
    source.leave_undivided(group_size)
    grid = GridStamp(bits=bits, group_size=group_size, symmetric=symmetric)
    how = Calibration(calibration, sequences, length)
    tokens = how.tokens(source.path, quantizer.statistic, source.skeleton)
    source.check(lambda module, weight: check_weight(source, module, weight))

    request = {
        "verb": "quantize",
        "method": method,
        "grid": grid.model_dump(),
        "modules": list(source.modules),
        "tokens": hash_of(tokens),
        "source": content_hash(source.path),
    }
    with open_job(out, request, overwrite) as job:
        # the files of the output, laid out
        dtypes = {name: source.folder.spec(source.stored(name)).dtype for name in source.modules}
        changed = source.changed(lambda name: int4_specs(name, source.modules[name], grid, dtypes[name]))
        weights = FolderWriter(source.folder, job.folder, changed, source.renamed)
        # a stamped folder keeps exactly the masks it has: an adapter trained on it carries their hash
        kept = source.folder.masks
        masks = mask_file(job.folder, {} if kept else source.modules, kept)

        # work
        scales: dict[str, str] = job.notes.setdefault("scales", {})

        def quantize_one(module: str, weight: Tensor, statistic: Tensor | None) -> Compressed:
            mask = own_mask(source, module, weight)
            result = quantize_weight(module, weight, mask, quantizer, grid, statistic)
            scales[module] = digest_of(result.scale)
            exact = result.dequantize()
            report = {
                "sparsity": sparsity_of(mask),
                "zeros": sparsity_of(exact),
                "error": relative_error(weight, exact),
            }
            return Compressed(exact, report, int4_tensors(module, result, grid, dtypes[module]), None if kept else mask)

        work = Compression(
            f"quantize ({method})", source.modules, quantizer.statistic, tokens, quantize_one, source.experts
        )
        rows = work.run(InFolder(job, source.skeleton, weights, masks))

        # everything beside the weights
        copy_side_files(source.folder, job.folder)
        write_config(job.folder, int4_config(source.folder.config, grid, source.outside))
        stamp = _stamp(source, job.folder, method, grid, scales, total(rows, "sparsity"))
        write_stamp(job.folder, stamp)
        write_model_card(job.folder)

    if source.structure.transposed:
        say(
            f"{out}: its Conv1D layers are stored as INT4 [out, in], as vLLM reads them; stock transformers has no "
            "INT4 Conv1D, so load it with sqft_plugins.checkpoint.load_model"
        )
    return QuantizeReport(
        out=str(out),
        method=method,
        bits=bits,
        group_size=group_size,
        symmetric=symmetric,
        left_out=count_of(source.fused),
        coverage=source.coverage.as_dict(),
        sparsity=total(rows, "sparsity"),
        zeros=total(rows, "zeros"),
        bytes=ModelFolder(out).weight_bytes,
        calibration=describe_calibration(how, tokens),
        **summed_up(rows, start),
    ).as_dict()


def own_mask(source: FloatModel, module: str, weight: Tensor) -> Tensor:
    """bool [out, in]: the folder's own mask, else the nonzero pattern."""
    mask = source.folder.mask(module)
    return nonzero_mask(weight) if mask is None else mask


def check_weight(source: FloatModel, module: str, weight: Tensor) -> None:
    """Raises GridError for a weight that no scale covers, and MismatchError for weights that are nonzero where the
    folder's mask prunes: then something dense was merged into it."""
    try:
        make_scale(weight.abs().amax().reshape(1, 1), PER_CHANNEL)
    except GridError as error:
        raise GridError(f"tensor {module}.weight: {error}") from error
    broken = lost_zeros(weight, own_mask(source, module, weight))
    if broken:
        raise MismatchError(
            f"model {source.name}: {broken} weights of {module} are nonzero although its mask prunes them: "
            f"merge a masked adapter, or remove {source.path}/sqft to take the model as a dense one"
        )


def quantize_weight(
    module: str, weight: Tensor, mask: Tensor, quantizer: Quantizer, grid: GridStamp, statistic: Tensor | None = None
) -> QuantizedWeight:
    """One weight [out, in] on the grid. Raises GridError naming the module, SQFTError for a broken mask."""
    try:
        result = quantizer.quantize(weight, mask, statistic, grid)
    except GridError as error:
        raise GridError(f"tensor {module}.weight: {error}") from error
    if result.lost_zeros(mask):
        raise SQFTError(f"method {quantizer.name!r} turned pruned weights of {module} back on: repair the plug-in")
    return result


def _stamp(
    source: FloatModel, folder: Path, method: str, grid: GridStamp, scales: dict[str, str], sparsity: float
) -> Stamp:
    changes: dict[str, Any] = {"grid": grid, "scale_hash": combined_hash(scales)}
    if source.folder.stamp is not None:
        return source.folder.stamp.then(method, **changes)
    hashed = mask_hash(ModelFolder(folder).masks)
    return Stamp(pipeline=[method], base=source.name, sparsity=sparsity, mask_hash=hashed, **changes)
