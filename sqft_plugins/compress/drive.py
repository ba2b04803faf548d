"""The driver of every compression. Peak memory is one block in float32 with its work, the calibration states, and the
embedding while it is looked up; it does not grow with the number of blocks. Everything is computed in float32.

    for each block, from the first that is not finished:
        store.load the block
        for each of its linear layers, in the order of their calls:
            collect the statistic of its inputs                         (visit.py)
            made = method(name, weight, statistic); the layer computes with made.weight from here on
            store.write made
        run the block again: its outputs are the inputs of the next     (blocks.py)
        store.finished: free the block, save the progress

So each layer sees compressed predecessors. Where the method wants no statistic, no block is run, and the layers come in
the order of the model. Otherwise the outer loop lies inside the model's own forward pass: see blocks.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.checkpoint.shards import ShardFile
from sqft_plugins.checkpoint.writer import FolderWriter
from sqft_plugins.compress.blocks import BlockRun, Position, check_tokens, run_blocks
from sqft_plugins.compress.experts import ExpertLinear
from sqft_plugins.compress.job import Job
from sqft_plugins.compress.report import Row, describe, output_error
from sqft_plugins.compress.skeleton import Skeleton
from sqft_plugins.compress.visit import Layer, visit_linears
from sqft_plugins.hardware import release_memory
from sqft_plugins.mask import pack_mask
from sqft_plugins.modes import evaluating
from sqft_plugins.plugins.protocols import Statistic
from sqft_plugins.progress import Steps, say
from sqft_plugins.structure import find_blocks, set_weight, weight_of


@dataclass(frozen=True)
class Compressed:
    """What a method made of one layer.

    weight: [out, in], any float dtype, what the layers behind it see.
    report: of the layer, at least `sparsity` and `error`.
    stored: tensor name → tensor, for the files.
    mask: bool [out, in], for the mask file; None where that has the layer's mask already.
    """

    weight: Tensor
    report: Row
    stored: Mapping[str, Tensor]
    mask: Tensor | None = None


Method = Callable[[str, Tensor, Tensor | None], Compressed]
"""(module name, weight [out, in] float32, statistic of its inputs) → what becomes of it."""


class InMemory:
    """Where blocks come from, and where what is made of them goes: here a model in memory, compressed in place.

    rows: the reports of the layers so far. position: how far an earlier run came.
    """

    def __init__(self, model: Any):
        self.model, self.rows, self.position = model, list[Row](), Position()

    def load(self, index: int, block: nn.Module) -> None:
        """Fills the block with its weights: they are there."""

    def write(self, module: str, made: Compressed) -> None:
        """Keeps what was made of a layer: it is in the model."""

    def finished(self, block: nn.Module, rows: list[Row], run: BlockRun | None) -> None:
        """run: with the block's outputs; None where no block is run."""
        self.rows += rows


class InFolder(InMemory):
    """A folder, read through `skeleton` and written into `weights` and `masks`; `job` is saved after each block."""

    def __init__(self, job: Job, skeleton: Skeleton, weights: FolderWriter, masks: ShardFile):
        super().__init__(skeleton.model)
        self.job, self.skeleton, self.weights, self.masks = job, skeleton, weights, masks
        self.rows = job.rows
        self.position = Position(job.done, job.states, job.further)
        job.states, job.further = None, []  # not held there while they change

        if job.resumed:
            say(f"going on at block {job.done + 1}: {job.path} has what an earlier run finished")
        else:
            weights.copy_rest()

    def load(self, index: int, block: nn.Module) -> None:
        self.skeleton.load_block(index, block)

    def write(self, module: str, made: Compressed) -> None:
        for name, tensor in made.stored.items():
            self.weights.write(name, tensor)
        if made.mask is not None:
            self.masks.write(module, pack_mask(made.mask))

    def finished(self, block: nn.Module, rows: list[Row], run: BlockRun | None) -> None:
        self.skeleton.free(block)
        release_memory()
        super().finished(block, rows, run)
        if run is None:
            self.job.save(None)
        else:
            self.job.save(run.states, run.further)


@dataclass
class Compression:
    """One compression.

    what: for the progress. modules: the layers that are compressed. experts: those of them that are layers of experts
    (experts.py). statistic: what `method` wants to know of their
    inputs. tokens: int64 [sequences, length], the calibration; None with the statistic "none", where nothing is run.
    """

    what: str
    modules: Collection[str]
    statistic: Statistic
    tokens: Tensor | None
    method: Method
    experts: Mapping[str, ExpertLinear] = field(default_factory=dict)

    def run(self, store: InMemory) -> list[Row]:
        """Compresses the model of `store`, block after block → the reports of its layers."""
        name, blocks = find_blocks(store.model)
        first = store.position.block
        with Steps(self.what, len(blocks), first) as steps, torch.no_grad(), evaluating(store.model):

            def on_block(index: int, run: BlockRun | None) -> None:
                steps.step(self._block(store, f"{name}.{index}.", index, blocks[index], run, steps))

            if self.statistic == "none":
                for index in range(first, len(blocks)):
                    on_block(index, None)
            else:
                run_blocks(store.model, check_tokens(store.model, self.tokens), on_block, store.position)
        return store.rows

    def _block(
        self, store: InMemory, prefix: str, index: int, block: nn.Module, run: BlockRun | None, steps: Steps
    ) -> str:
        """One block → what to log of it. prefix: of the names of its modules. run: None where nothing is run."""
        start = time.perf_counter()
        linears: dict[str, Layer] = {
            module: self.experts[module] if module in self.experts else block.get_submodule(module.removeprefix(prefix))
            for module in self.modules
            if (self.experts[module].path if module in self.experts else module).startswith(prefix)
        }
        rows: list[Row] = []

        def visit(module: str, statistic: Tensor | None) -> None:
            rows.append(self._layer(store, module, linears[module], statistic))
            steps.tell(f"{module}: {describe(rows[-1:])}, {rows[-1]['seconds']:.1f} s")

        store.load(index, block)
        if run is None:
            for module in linears:
                visit(module, None)
        else:
            visit_linears(run, linears, self.statistic, visit)  # and runs the block
        store.finished(block, rows, run)
        return f"{describe(rows)}, {time.perf_counter() - start:.1f} s"

    def _layer(self, store: InMemory, module: str, linear: Any, statistic: Tensor | None) -> Row:
        start = time.perf_counter()
        weight = weight_of(linear).float()  # [out, in]
        made = self.method(module, weight, statistic)

        row = {"name": module, "shape": list(weight.shape), **made.report}
        if statistic is not None and statistic.ndim == 2:
            row["output_error"] = output_error(weight, made.weight, statistic)

        set_weight(linear, made.weight)
        store.write(module, made)
        return {**row, "seconds": time.perf_counter() - start}
