"""Pruning: one forward pass over the calibration batch, layer after layer, so that each layer sees pruned predecessors.

The driver knows no method: a pruner (hook `sqft_pruners`) gets a weight and the statistic of its inputs that it asked
for, and returns the new weight and its mask.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqft_plugins.checkpoint.files import check_output, write_folder
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.int4 import copy_side_files
from sqft_plugins.checkpoint.load import load_model, load_tokenizer, save_model
from sqft_plugins.checkpoint.stamp import Stamp, write_sidecar
from sqft_plugins.compress.calibration import calibration_texts, token_batch
from sqft_plugins.compress.find import find_linears
from sqft_plugins.compress.visit import visit_linears
from sqft_plugins.errors import CheckpointError, GridError, SQFTError
from sqft_plugins.mask import check_sparsity, mask_hash, nonzero_mask, pack_mask
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Pruner
from sqft_plugins.progress import say

Report = dict[str, Any]


def prune_model(
    model: PreTrainedModel, tokens: Tensor | None, pruner: Pruner, sparsity: float
) -> tuple[dict[str, Tensor], list[Report]]:
    """Prunes the linear layers of the decoder blocks in place → packed masks by module name, and one report a layer
    (name, shape, sparsity, seconds).

    tokens: int64 [sequences, length], the calibration batch; not used by a pruner with the statistic "none". The mask
    IS the nonzero pattern of the pruned weight: a weight that the method keeps but that was 0 already counts as pruned,
    so a layer can be a little sparser than asked. Statistics are float32, weights keep their dtype.

    Raises GridError for a weight or an input that is not finite, SQFTError for a layer the forward pass does not call,
    tokens outside the vocabulary, and a pruner that does not return what it promises. After an error in the midst of
    the pass the model is partly pruned: load it again.
    """
    check_sparsity(sparsity)
    linears = find_linears(model)
    check_finite(linears)
    masks: dict[str, Tensor] = {}
    report: list[Report] = []

    def prune(name: str, statistic: Tensor | None) -> None:
        start = time.perf_counter()
        weight = linears[name].weight.data  # [out, in]
        masks[name] = pack_mask(_prune_weight(name, weight, statistic, pruner, sparsity))
        zeros = weight.numel() - int(torch.count_nonzero(weight))
        report.append(
            {
                "name": name,
                "shape": list(weight.shape),
                "sparsity": zeros / weight.numel(),
                "seconds": time.perf_counter() - start,
            }
        )

    visit_linears(model, tokens, linears, pruner.statistic, prune, f"prune ({pruner.name})")
    return {name: masks[name] for name in linears}, report


def prune_folder(
    model_path: str | Path,
    out: str | Path,
    method: str = "wanda",
    sparsity: float = 0.5,
    calibration: str | Path | None = None,
    sequences: int = 32,
    length: int = 128,
    overwrite: bool = False,
) -> Report:
    """Prunes a model (a folder, or a name on the hub) and writes it with its tokenizer, mask and stamp to `out`, in the
    dtype it was saved in.

    method: a pruner's name. sparsity: 0..1. calibration: a text file or JSONL, None for the built-in text. Returns out,
    method, sparsity (asked), sparsity_reached, weights, modules, calibration, seconds, peak_memory_mib and layers.
    Raises SQFTError; what can be known before the model is loaded is checked before; nothing half-written stays.
    """
    start = time.perf_counter()
    check_sparsity(sparsity)
    pruner: Pruner = get_manager().get("sqft_pruners", method, "--method")
    check_output(out, overwrite)
    source = ModelFolder(model_path) if Path(model_path).is_dir() else None
    if source is not None and source.grid is not None:
        raise SQFTError(f"model {model_path} is INT4 already: prune its float model, then quantize that")
    texts = calibration_texts(calibration)
    tokenizer = load_tokenizer(model_path)
    tokens = None if pruner.statistic == "none" else token_batch(texts, tokenizer, sequences, length)
    say(f"loading {model_path}")
    model = load_model(model_path)
    masks, layers = prune_model(model, tokens, pruner, sparsity)

    reached = _total_sparsity(layers)
    before = source.stamp if source is not None else None
    hashed = mask_hash(masks)
    if before is None:
        stamp = Stamp(pipeline=[method], base=str(model_path), sparsity=reached, mask_hash=hashed)
    else:
        stamp = before.then(method, base=str(model_path), sparsity=reached, mask_hash=hashed)
    say(f"writing {out}")
    with write_folder(out, overwrite) as target:
        shard = "50GB" if source is None else max(file.stat().st_size for file in source.files.values())
        save_model(model, target, max_shard_size=shard)
        if source is None:
            tokenizer.save_pretrained(target)
        else:
            copy_side_files(source, target)  # the tokenizer as it is, byte for byte
        write_sidecar(target, stamp, masks)
        _check_names(ModelFolder(target), masks)
    return {
        "out": str(out),
        "method": method,
        "sparsity": sparsity,
        "sparsity_reached": reached,
        "modules": len(layers),
        "weights": sum(layer["shape"][0] * layer["shape"][1] for layer in layers),
        "calibration": None
        if tokens is None
        else {"source": str(calibration or "built-in"), "tokens": list(tokens.shape)},
        "seconds": time.perf_counter() - start,
        "peak_memory_mib": peak_memory_mib(),
        "layers": layers,
    }


def check_finite(linears: dict[str, nn.Linear]) -> None:
    """Raises GridError that names the first weight holding NaN or infinity."""
    for name, linear in linears.items():
        if not bool(torch.isfinite(linear.weight).all()):
            raise GridError(f"tensor {name}.weight holds NaN or infinity: copy or convert the model again")


def peak_memory_mib() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _prune_weight(name: str, weight: Tensor, statistic: Tensor | None, pruner: Pruner, sparsity: float) -> Tensor:
    """Writes the pruned weight in place → the mask, bool [out, in]."""
    pruned, mask = pruner.prune(weight, statistic, sparsity)
    if pruned.shape != weight.shape or mask.shape != weight.shape or mask.dtype != torch.bool:
        raise SQFTError(f"method {pruner.name!r} returned another shape or no bool mask for {name}: repair the plug-in")
    if bool(((pruned != 0) & ~mask).any()):
        raise SQFTError(
            f"method {pruner.name!r} left weights of {name} nonzero that its mask prunes: repair the plug-in"
        )
    weight.copy_(pruned)
    return nonzero_mask(weight)


def _total_sparsity(layers: list[Report]) -> float:
    sizes = [layer["shape"][0] * layer["shape"][1] for layer in layers]
    return sum(round(layer["sparsity"] * size) for layer, size in zip(layers, sizes, strict=True)) / sum(sizes)


def _check_names(written: ModelFolder, masks: dict[str, Tensor]) -> None:
    # transformers renames the weights of some architectures when it saves; masks must then not point nowhere
    for name in masks:
        if f"{name}.weight" not in written.files:
            raise CheckpointError(
                f"layer {name} is saved under another name, which this release cannot follow: report the model"
            )
