"""`sqft export gguf-lora`: a dense sub-adapter as a LoRA file that llama.cpp adds to a GGUF of its base.

Of a module with weight `w`, the file holds `w.lora_a` [r, in] and `w.lora_b` [out, r], each module with its own r.
llama.cpp scales by alpha / r, or not at all where alpha is 0; with ranks that differ, one alpha cannot be right for
all, so the scaling is folded into B and alpha is 0. Rows of B are put into the order that the rows of the weight have.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gguf_ext.arch import Architecture, Config, Entry, find_architecture, read_config
from gguf_ext.blocks import TensorType
from gguf_ext.errors import AdapterError, NonFiniteWeightError, UnmappedTensorError, VerificationError
from gguf_ext.gguf_package import require_gguf
from gguf_ext.lora.config import check_dense
from gguf_ext.reader import GGUFFile
from gguf_ext.write.file import write_tensors
from gguf_ext.write.metadata import WRITER
from gguf_ext.write.plan import Planned
from gguf_ext.write.tensors import PlacedTensor, find_place, is_tied
from sqft_plugins.adapter import AdapterFolder
from sqft_plugins.checkpoint import ModelFolder, write_file
from sqft_plugins.checkpoint.files import check_output_file
from sqft_plugins.errors import MismatchError


@dataclass(frozen=True)
class LoraReport:
    """What was written.

    path: the file.
    base: the model folder that names and shapes were taken from.
    architecture: llama.cpp's.
    modules: how many are adapted.
    ranks: rank → number of modules.
    bytes: of the file.
    """

    path: str
    base: str
    architecture: str
    modules: int
    ranks: dict[int, int]
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def export_lora(
    adapter: str | Path, target: str | Path, *, base: str | Path | None = None, overwrite: bool = False
) -> LoraReport:
    """Writes an adapter folder of PEFT (plain LoRA, or a dense SQFT adapter of fixed rank) as a LoRA file in float32.

    base: the model folder, float or INT4; None for the one that the adapter names. Raises AdapterError for what no LoRA
    file can hold, UnmappedTensorError, MismatchError for another base, CheckpointError, OutputExistsError.
    """
    lora = AdapterFolder(adapter)
    check_dense(lora)
    target = check_output_file(target, overwrite)
    require_gguf()

    # which module stands where in the base
    named = base if base is not None else lora.base
    if not named or not Path(named).is_dir():
        raise AdapterError(f"adapter {adapter} has the base {named}, which is no folder here: name it with --base")
    folder = ModelFolder(named)
    architecture = find_architecture(folder.config, folder.path)
    planned = _plan(lora, folder, architecture, read_config(folder.path, architecture))

    # write, reopen, compare, rename
    entries = [
        Entry("general.type", "adapter", "string"),
        Entry("general.name", lora.path.resolve().name, "string"),
        Entry("general.base_model.count", 1, "uint32"),
        Entry("general.base_model.0.name", folder.path.resolve().name, "string"),
        Entry("adapter.type", "lora", "string"),
        Entry("adapter.lora.alpha", 0.0, "float32"),
        WRITER,
    ]
    with write_file(target, overwrite) as temporary:
        write_tensors(temporary, architecture.name, entries, planned, folder)
        _verify(temporary, planned, target)

    counted = [tensor.shape[0] for tensor in planned if tensor.name.endswith(".lora_a")]
    return LoraReport(
        path=str(target),
        base=str(folder.path),
        architecture=architecture.name,
        modules=len(counted),
        ranks={rank: counted.count(rank) for rank in sorted(set(counted))},
        bytes=target.stat().st_size,
    )


def _plan(lora: AdapterFolder, folder: ModelFolder, architecture: Architecture, base: Config) -> list[Planned]:
    """A and B of every module, in the order and with the scaling of the file. base: the configuration of the base."""
    adapter, merge = lora.path, f"merge it with `sqft merge MODEL {lora.path} --out DIR` and export that"
    if lora.others:
        raise UnmappedTensorError(f"tensor {lora.others[0]} of adapter {adapter} has no place in a LoRA file: {merge}")
    for module in lora.foreign_weights(folder):
        raise MismatchError(
            f"adapter {adapter} carries a {module} of its own, which is not that of {folder.path}: a LoRA file holds "
            f"no such weight, {merge}"
        )

    planned = []
    for pair, A, B in lora.read_pairs():
        module = pair.module
        lora.check_pair(pair)
        rule, layer, owner = find_place(architecture, module)
        tied = module == "lm_head" and is_tied(folder, architecture, base)
        if rule is None or tied:
            why = "shares its weight with the embedding" if tied else f"has no place in a {architecture.name} file"
            raise UnmappedTensorError(f"module {module} of adapter {adapter} {why}: {merge}")
        _check_shape(folder, owner, (pair.outputs, pair.inputs), adapter)

        B = B.float() * lora.scaling(module)
        B = B if rule.rows is None else B[rule.rows(base)]
        name = architecture.target(rule).format(i=layer)
        for end, part in (("lora_a", A.float()), ("lora_b", B)):
            if not bool(torch.isfinite(part).all()):
                raise NonFiniteWeightError(f"{module} of adapter {adapter} holds NaN or infinity: train it again")
            placed = PlacedTensor(f"{name}.weight.{end}", "", constant=part.contiguous())
            planned.append(Planned(placed, TensorType.F32, tuple(part.shape)))

    if not planned:
        raise AdapterError(f"adapter {adapter} holds no LoRA: give one that was trained, or copy it again")
    return planned


def _check_shape(folder: ModelFolder, module: str, shape: tuple[int, int], adapter: Path) -> None:
    stored = next((name for name in (module, module.partition(".")[2]) if name in folder.int4), module)
    there = folder.weight_shape(stored)
    if there != shape:
        raise MismatchError(
            f"{module} is {shape} in adapter {adapter} but {there} in {folder.path}: name its own base with --base"
        )


def _verify(file: Path, planned: list[Planned], target: Path) -> None:
    read = GGUFFile(file)
    for tensor in planned:
        wanted: Tensor = tensor.placed.constant  # type: ignore[assignment]
        if not np.array_equal(read.dequantize(tensor.name).view(np.uint32), wanted.numpy().view(np.uint32)):
            raise VerificationError(f"--out {target}: {tensor.name} differs: nothing was written, report this as a bug")
