"""INT4: one weight at a time onto the grid, the mask kept, written as `pack-quantized`.

The driver knows no method: a quantizer (hook `sqft_quantizers`) gets a weight, its mask, the grid and the statistic of
its inputs that it asked for, and returns codes. Without a statistic weights are read from the folder one by one; with
one, the model runs over a calibration batch, and each layer sees quantized predecessors.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sqft_plugins.checkpoint.files import check_output, write_folder
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.int4 import write_int4
from sqft_plugins.checkpoint.load import load_model, load_tokenizer
from sqft_plugins.checkpoint.stamp import GridStamp, Stamp
from sqft_plugins.compress.calibration import calibration_texts, token_batch
from sqft_plugins.compress.find import find_linears, structure_of_folder
from sqft_plugins.compress.prune import peak_memory_mib
from sqft_plugins.compress.visit import visit_linears
from sqft_plugins.errors import GridError, MismatchError, SQFTError
from sqft_plugins.grid import QuantizedWeight, group_width
from sqft_plugins.mask import mask_hash, nonzero_mask, pack_mask, unpack_mask
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Quantizer
from sqft_plugins.progress import say, track


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
) -> dict[str, Any]:
    """Quantizes the linear layers of the decoder blocks of a float model folder to INT4 and writes it to `out`, with
    tokenizer, mask and stamp. Round-to-nearest holds one tensor in memory beside the shard being written; a method that
    calibrates (gptq) holds the model in float32.

    group_size: 32, 64, 128 or -1 (per channel). The mask is the folder's own, else the nonzero pattern. calibration: a
    text file or JSONL, None for the built-in text; `sequences` of `length` tokens. Returns out,
    method, group_size, symmetric, modules, weights, sparsity (of the mask), zeros (fraction of zero codes), bytes,
    seconds, peak_memory_mib and layers (name, shape, sparsity, zeros, error: ‖W - Q‖ / ‖W‖).

    Raises SQFTError for a quantized source, GridError for a group that does not divide (all layers are checked before
    any work) or a weight that is not finite, MismatchError for weights that are nonzero where the mask prunes.
    """
    start = time.perf_counter()
    quantizer: Quantizer = get_manager().get("sqft_quantizers", method, "--method")
    check_output(out, overwrite)
    source = ModelFolder(model_path)
    if source.grid is not None:
        raise SQFTError(f"model {model_path} is INT4 already: give the float model it was made from")
    structure = structure_of_folder(model_path)
    for name, (_, in_features) in structure.shapes.items():
        group_width(in_features, group_size, name)
    grid = GridStamp(group_size=group_size, symmetric=symmetric)
    masks = source_masks(source, structure.shapes)
    layers: dict[str, dict[str, Any]] = {}

    def one(module: str, weight: Tensor, statistic: Tensor | None = None) -> QuantizedWeight:
        mask = unpack_mask(masks[module], weight.shape[1])
        result = quantize_weight(module, weight, mask, quantizer, grid, statistic)
        layers[module] = layer_report(module, weight, mask, result)
        return result

    if quantizer.statistic == "none":
        steps = iter(track(range(len(structure.shapes)), f"quantize ({method})"))

        def quantize(module: str, weight: Tensor) -> QuantizedWeight:
            next(steps)
            return one(module, weight)

    else:
        tokens = token_batch(calibration_texts(calibration), load_tokenizer(model_path), sequences, length)
        say(f"loading {model_path}")
        done = quantize_model(load_model(model_path, dtype=torch.float32), tokens, quantizer, one)

        def quantize(module: str, weight: Tensor) -> QuantizedWeight:
            return done.pop(module)

    # a stamped folder keeps exactly the masks it has: an adapter trained on it carries their hash
    kept = source.packed_masks or masks
    pruned = sum(layer_zeros(masks[m], shape) for m, shape in structure.shapes.items())
    weights = sum(rows * columns for rows, columns in structure.shapes.values())
    if source.stamp is None:
        stamp = Stamp(pipeline=[method], base=str(model_path), sparsity=pruned / weights, mask_hash=mask_hash(kept))
    else:
        stamp = source.stamp.then(method)
    say(f"writing {out}")
    with write_folder(out, overwrite) as target:
        write_int4(source, target, quantize, structure.shapes, structure.outside, grid, stamp, packed_masks=kept)
    rows = [layers[module] for module in structure.shapes]
    return {
        "out": str(out),
        "method": method,
        "group_size": group_size,
        "symmetric": symmetric,
        "modules": len(rows),
        "weights": weights,
        "sparsity": pruned / weights,
        "zeros": sum(round(row["zeros"] * row["shape"][0] * row["shape"][1]) for row in rows) / weights,
        "bytes": ModelFolder(out).weight_bytes,
        "seconds": time.perf_counter() - start,
        "peak_memory_mib": peak_memory_mib(),
        "layers": rows,
    }


def quantize_model(
    model: PreTrainedModel,
    tokens: Tensor,
    quantizer: Quantizer,
    one: Callable[[str, Tensor, Tensor | None], QuantizedWeight],
) -> dict[str, QuantizedWeight]:
    """Calls `one(module, weight, statistic)` for each linear layer of the blocks and puts the dequantized result into
    the model, in place, so that later layers see it → module name → codes (a byte a weight)."""
    linears = find_linears(model)
    results: dict[str, QuantizedWeight] = {}

    def visit(name: str, statistic: Tensor | None) -> None:
        weight = linears[name].weight.data
        results[name] = one(name, weight, statistic)
        weight.copy_(results[name].dequantize())

    visit_linears(model, tokens, linears, quantizer.statistic, visit, f"quantize ({quantizer.name})")
    return results


def source_masks(source: ModelFolder, modules: Iterable[str]) -> dict[str, Tensor]:
    """Module name → packed mask: the folder's own, else the nonzero pattern. Reads every weight once, one at a time.

    Raises GridError, naming the tensor, for NaN and infinity, and MismatchError for weights that are nonzero where the
    folder's mask prunes: then something dense was merged into it.
    """
    masks = {}
    for module in track(list(modules), "check"):
        weight = source.tensor(f"{module}.weight")
        if not bool(torch.isfinite(weight).all()):
            raise GridError(f"tensor {module}.weight holds NaN or infinity: copy or convert the model again")
        mask = source.mask(module)
        if mask is None:
            mask = nonzero_mask(weight)
        else:
            broken = int(((weight != 0) & ~mask).sum())
            if broken:
                raise MismatchError(
                    f"model {source.path}: {broken} weights of {module} are nonzero although its mask prunes them: "
                    f"merge a masked adapter, or remove {source.path}/sqft to take the model as a dense one"
                )
        masks[module] = pack_mask(mask)
    return masks


def quantize_weight(
    module: str, weight: Tensor, mask: Tensor, quantizer: Quantizer, grid: GridStamp, statistic: Tensor | None = None
) -> QuantizedWeight:
    """One weight [out, in] on the grid. Raises GridError naming the module, SQFTError for a broken mask."""
    try:
        result = quantizer.quantize(weight, mask, statistic, grid)
    except GridError as error:
        raise GridError(f"tensor {module}.weight: {error}") from error
    if bool((~mask & (result.steps() != 0)).any()):
        raise SQFTError(f"method {quantizer.name!r} turned pruned weights of {module} back on: repair the plug-in")
    return result


def layer_report(module: str, weight: Tensor, mask: Tensor, result: QuantizedWeight) -> dict[str, Any]:
    """name, shape, sparsity (of the mask), zeros (fraction of zero codes), error (‖W - Q‖ / ‖W‖, Frobenius)."""
    exact = result.dequantize()
    norm = float(torch.linalg.vector_norm(weight.float()))
    return {
        "name": module,
        "shape": list(weight.shape),
        "sparsity": 1 - int(torch.count_nonzero(mask)) / mask.numel(),
        "zeros": 1 - int(torch.count_nonzero(exact)) / exact.numel(),
        "error": float(torch.linalg.vector_norm(exact - weight.float())) / (norm or 1.0),
    }


def layer_zeros(packed: Tensor, shape: tuple[int, int]) -> int:
    """How many weights a packed mask of `shape` prunes."""
    return shape[0] * shape[1] - int(torch.count_nonzero(unpack_mask(packed, shape[1])))
