"""Pruning: block after block, so that each layer sees pruned predecessors.

The driver knows no method: a pruner (hook `sqft_pruners`) gets a weight, the statistic of its inputs that it asked for
and the pattern, and returns the new weight and its mask.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sqft_plugins.cards.model import write_model_card
from sqft_plugins.checkpoint.files import check_output
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.stamp import Stamp, mask_file, write_stamp
from sqft_plugins.checkpoint.writer import FolderWriter, copy_side_files, write_config
from sqft_plugins.compress.coverage import coverage_of
from sqft_plugins.compress.drive import Compressed, Compression, InFolder, InMemory
from sqft_plugins.compress.experts import find_experts, find_routers, names_of, weights_inside
from sqft_plugins.compress.float_model import Calibration, FloatModel, describe_calibration, hash_of
from sqft_plugins.compress.fused import fused_weights
from sqft_plugins.compress.job import open_job
from sqft_plugins.compress.report import Report, Row, relative_error, summed_up, total, weights_of
from sqft_plugins.errors import GridError, SQFTError
from sqft_plugins.identity import content_hash
from sqft_plugins.mask import Pattern, lost_zeros, mask_hash, nonzero_mask, pack_mask, sparsity_of
from sqft_plugins.names import resolve, select
from sqft_plugins.plugins import get_manager
from sqft_plugins.plugins.protocols import Pruner
from sqft_plugins.structure import find_linears, weight_of


def prune_model(
    model: PreTrainedModel,
    tokens: Tensor | None,
    pruner: Pruner,
    sparsity: float | str | Pattern,
    exclude: Sequence[str] = (),
) -> tuple[dict[str, Tensor], list[Row]]:
    """Prunes the linear layers of the decoder blocks in place, experts among them and routers not → packed masks by
    module name, and one report a layer (`Row`).

    model: in any mode; it is calibrated in evaluation mode.
    tokens: int64 [sequences, length], the calibration batch; not used by a pruner with the statistic "none".
    pruner: such as `Wanda()`. Statistics are float32, weights keep their dtype.
    sparsity: a fraction 0..1, or N:M (N of M are kept).
    exclude: patterns of layers that stay as they are (`sqft_plugins.names`), such as one layer of one expert
        ("experts.3.down_proj") or the parameter that holds those of all ("experts.down_proj").

    The mask is the nonzero pattern of the pruned weight: a weight that the method keeps but that was 0 already counts
    as pruned, so a layer can be a little sparser than asked.

    Raises GridError for a weight or an input that is not finite, SQFTError for experts in a form that is not known and
    that are not excluded (the sparsity could not be reached), a layer the forward pass does not call, tokens outside
    the vocabulary, and a pruner that breaks its promise. After an error in the midst of the pass the model
    is partly pruned: load it again.
    """
    # the layers that are meant
    pattern = as_pattern(sparsity)
    experts, fused = find_experts(model), fused_weights(model)
    linears: dict[str, Any] = {**find_linears(model), **experts}
    excluded = {*select(exclude, [*linears, *fused], "exclude"), *find_routers(model)}
    linears = {name: layer for name, layer in linears.items() if excluded.isdisjoint(names_of(name, layer))}

    # everything that can be refused
    if pattern.sparsity and not exclude:
        inside = weights_inside(layer for name, layer in experts.items() if name in linears)
        coverage_of(model, linears, inside).check("pruning", type(model).__name__, "exclude=[…]")
    if not linears:
        raise SQFTError(f"exclude={list(exclude)} leaves no layer to work on: exclude less")
    for name, linear in linears.items():
        pattern.check(weight_of(linear).shape[1], name)
        if not bool(torch.isfinite(linear.weight).all()):
            raise GridError(f"tensor {name}.weight holds NaN or infinity: copy or convert the model again")

    # work
    masks: dict[str, Tensor] = {}

    def prune_one(module: str, weight: Tensor, statistic: Tensor | None) -> Compressed:
        made = prune_weight(module, weight, statistic, pruner, pattern, linears[module].weight.dtype)
        masks[module] = pack_mask(nonzero_mask(made.weight))
        return made

    work = Compression(f"prune ({pruner.name})", linears, pruner.statistic, tokens, prune_one, experts)
    rows = work.run(InMemory(model))
    return {name: masks[name] for name in linears}, rows


@dataclass(kw_only=True)
class PruneReport(Report):
    """sparsity, pattern: what was asked, such as 0.5 and "50%" or 0.5 and "2:4". sparsity_reached: over all layers.
    sparsity_of_model: over all weights of the model, with embeddings and whatever else is not pruned."""

    sparsity: float
    pattern: str
    sparsity_reached: float
    sparsity_of_model: float


def prune_folder(
    model_path: str | Path,
    out: str | Path,
    method: str = "wanda",
    sparsity: float | str | Pattern = 0.5,
    calibration: str | Path | None = None,
    sequences: int = 32,
    length: int = 128,
    overwrite: bool = False,
    exclude: Sequence[str] = (),
    overrides: Mapping[str, float | str] | None = None,
) -> dict[str, Any]:
    """Prunes a model and writes it with its tokenizer, mask and stamp to `out`, in the dtype it was saved in, with the
    same shards → the fields of `PruneReport`. Holds one block in memory at a time; killed, it goes on where it was.

    model_path: a folder, or a name on the hub.
    method: a pruner's name.
    sparsity: a fraction 0..1, or N:M (N of M are kept).
    calibration: a text file, JSONL or the name of a data set, None for the built-in text.
    sequences, length: of the calibration batch, in tokens.
    exclude: patterns of layers that stay as they are.
    overrides: pattern → another sparsity (`sqft_plugins.names`).

    Raises SQFTError; what can be known before the long work is checked before; nothing half-written stays.
    """
    start = time.perf_counter()

    # everything that can be refused
    asked = as_pattern(sparsity)
    pruner: Pruner = get_manager().get("sqft_pruners", method, "--method")
    check_output(out, overwrite)
    source = FloatModel(model_path, exclude)
    values = {pattern: as_pattern(value) for pattern, value in (overrides or {}).items()}
    patterns = resolve(values, list(source.modules), asked, "--sparsity-of")
    for module, pattern in patterns.items():
        pattern.check(source.modules[module][1], module)
    if asked.sparsity:
        source.check_coverage("pruning")
    how = Calibration(calibration, sequences, length)
    tokens = how.tokens(source.path, pruner.statistic, source.skeleton)
    source.check()

    request = {
        "verb": "prune",
        "method": method,
        "patterns": {module: str(pattern) for module, pattern in patterns.items()},
        "tokens": hash_of(tokens),
        "source": content_hash(source.path),
    }
    with open_job(out, request, overwrite) as job:
        # the files of the output, laid out
        specs = {name: source.spec(name) for name in source.modules}
        changed = source.changed(lambda name: {source.written(name): specs[name]})
        weights = FolderWriter(source.folder, job.folder, changed, source.renamed)
        # layers that were pruned before and are left out now keep their masks
        earlier = {name: packed for name, packed in source.folder.masks.items() if name not in source.modules}
        masks = mask_file(job.folder, source.modules, earlier)

        # work
        def prune_one(module: str, weight: Tensor, statistic: Tensor | None) -> Compressed:
            made = prune_weight(module, weight, statistic, pruner, patterns[module], specs[module].dtype)
            stored = {source.written(module): source.as_stored(module, made.weight)}
            return Compressed(made.weight, made.report, stored, nonzero_mask(made.weight))

        work = Compression(f"prune ({method})", source.modules, pruner.statistic, tokens, prune_one, source.experts)
        rows = work.run(InFolder(job, source.skeleton, weights, masks))

        # everything beside the weights
        copy_side_files(source.folder, job.folder)
        write_config(job.folder, source.folder.config)
        left_out = [mask for mask in map(source.folder.mask, earlier) if mask is not None]
        masked = [*rows, *({"shape": mask.shape, "sparsity": sparsity_of(mask)} for mask in left_out)]
        stamp = _stamp(source, job.folder, method, total(masked, "sparsity"))
        write_stamp(job.folder, stamp)
        write_model_card(job.folder)

    return PruneReport(
        out=str(out),
        method=method,
        sparsity=asked.sparsity,
        pattern=str(asked),
        sparsity_reached=total(rows, "sparsity"),
        sparsity_of_model=total(masked, "sparsity") * weights_of(masked) / source.coverage.model,
        coverage=source.coverage.as_dict(),
        calibration=describe_calibration(how, tokens),
        **summed_up(rows, start),
    ).as_dict()


def prune_weight(
    name: str, weight: Tensor, statistic: Tensor | None, pruner: Pruner, pattern: Pattern, dtype: torch.dtype
) -> Compressed:
    """weight [out, in] float32 → the pruned weight in `dtype`, in which it is stored. Raises SQFTError for a pruner
    that breaks its promise."""
    pruned, mask = pruner.prune(weight, statistic, pattern)

    if pruned.shape != weight.shape or mask.shape != weight.shape or mask.dtype != torch.bool:
        raise SQFTError(f"method {pruner.name!r} returned another shape or no bool mask for {name}: repair the plug-in")
    if lost_zeros(pruned, mask):
        raise SQFTError(
            f"method {pruner.name!r} left weights of {name} nonzero that its mask prunes: repair the plug-in"
        )
    if not bool(torch.isfinite(pruned).all()):
        raise SQFTError(f"method {pruner.name!r} made NaN or infinity of {name}: give more calibration text")

    pruned = pruned.to(dtype)
    return Compressed(pruned, {"sparsity": sparsity_of(pruned), "error": relative_error(weight, pruned)}, {})


def as_pattern(sparsity: float | str | Pattern) -> Pattern:
    return sparsity if isinstance(sparsity, Pattern) else Pattern.parse(sparsity)


def _stamp(source: FloatModel, folder: Path, method: str, sparsity: float) -> Stamp:
    hashed = mask_hash(ModelFolder(folder).masks)
    fields: dict[str, Any] = {"base": source.name, "sparsity": sparsity, "mask_hash": hashed}
    before = source.folder.stamp
    return Stamp(pipeline=[method], **fields) if before is None else before.then(method, **fields)
