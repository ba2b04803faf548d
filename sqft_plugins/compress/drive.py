"""The driver of every compression: block after block, each layer seeing compressed predecessors.

Over a folder, a block is read, worked on, written and forgotten: peak memory is one block in float32 with its work, the
calibration states, and the embedding while it is looked up; it does not grow with the number of blocks. Everything is
computed in float32, whatever the folder's dtype.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.checkpoint.shards import ShardFile
from sqft_plugins.checkpoint.writer import FolderWriter
from sqft_plugins.compress.blocks import BlockRun, check_tokens, run_blocks
from sqft_plugins.compress.job import Job
from sqft_plugins.compress.report import Row, describe, output_error
from sqft_plugins.compress.skeleton import Skeleton
from sqft_plugins.compress.visit import visit_linears
from sqft_plugins.hardware import release_memory
from sqft_plugins.mask import pack_mask
from sqft_plugins.modes import evaluating
from sqft_plugins.plugins.protocols import Statistic
from sqft_plugins.progress import Steps, say
from sqft_plugins.structure import find_blocks, set_weight, weight_of


@dataclass(frozen=True)
class Compressed:
    """What a method made of one layer. weight: [out, in], any float dtype, what the layers behind it see. report: what
    to tell of it, at least `sparsity` and `error`. stored: tensor name → tensor, for the files. mask: bool [out, in],
    to be stored there."""

    weight: Tensor
    report: Row
    stored: Mapping[str, Tensor]
    mask: Tensor | None = None


Method = Callable[[str, Tensor, Tensor | None], Compressed]
"""(module name, weight [out, in] float32, statistic of its inputs) → what becomes of it."""


@dataclass
class Compression:
    """One compression. modules: the layers that are compressed. statistic: what `method` wants to know of their inputs.
    tokens: int64 [sequences, length], the calibration; None with the statistic "none", where nothing is run."""

    what: str
    modules: Collection[str]
    statistic: Statistic
    tokens: Tensor | None
    method: Method

    def of_folder(self, job: Job, skeleton: Skeleton, weights: FolderWriter, masks: ShardFile | None) -> None:
        """Reads block by block from the skeleton's folder, writes into `weights` and `masks`, and saves the job after
        each block; the layers' reports are `job.rows`."""
        if job.resumed:
            say(f"going on at block {job.done + 1}: {job.path} has what an earlier run finished")
        else:
            weights.copy_rest()

        def write(module: str, made: Compressed) -> None:
            for name, tensor in made.stored.items():
                weights.write(name, tensor)
            if masks is not None and made.mask is not None:
                masks.write(module, pack_mask(made.mask))

        def finished(block: nn.Module, rows: list[Row], run: BlockRun | None) -> None:
            skeleton.free(block)
            release_memory()
            job.rows += rows
            if run is not None:
                job.notes["returns_tuple"] = run.returns_tuple
            job.save(None if run is None else run.states)

        states, job.states = job.states, None  # not held here while they change
        self._run(
            skeleton.model, skeleton.load_block, write, finished, job.done, states, job.notes.get("returns_tuple")
        )

    def of_model(self, model: Any) -> list[Row]:
        """Compresses a model in memory, in place → the layers' reports."""
        reports: list[Row] = []
        self._run(
            model, lambda index, block: None, lambda module, made: None, lambda block, rows, run: reports.extend(rows)
        )
        return reports

    def _run(
        self,
        model: Any,
        load: Callable[[int, nn.Module], None],
        write: Callable[[str, Compressed], None],
        finished: Callable[[nn.Module, list[Row], BlockRun | None], None],
        first: int = 0,
        states: list[Tensor] | None = None,
        returns_tuple: bool | None = None,
    ) -> None:
        name, blocks = find_blocks(model)

        def work(index: int, run: BlockRun | None) -> None:
            block, start = blocks[index], time.perf_counter()
            prefix = f"{name}.{index}."
            linears = {m: block.get_submodule(m.removeprefix(prefix)) for m in self.modules if m.startswith(prefix)}
            load(index, block)
            rows: list[Row] = []

            def visit(module: str, seen: Tensor | None) -> None:
                rows.append(self._compress(module, linears[module], seen, write))
                steps.tell(f"{module}: {describe(rows[-1:])}, {rows[-1]['seconds']:.1f} s")

            if run is None:
                for module in linears:
                    visit(module, None)
            else:
                visit_linears(run, linears, self.statistic, visit)
            finished(block, rows, run)
            steps.step(f"{describe(rows)}, {time.perf_counter() - start:.1f} s")

        with Steps(self.what, len(blocks), first) as steps, torch.no_grad(), evaluating(model):
            if self.statistic == "none":
                for index in range(first, len(blocks)):
                    work(index, None)
            else:
                run_blocks(model, check_tokens(model, self.tokens), work, first, states, bool(returns_tuple))

    def _compress(self, module: str, linear: Any, seen: Tensor | None, write: Callable[[str, Compressed], None]) -> Row:
        start = time.perf_counter()
        weight = weight_of(linear).float()  # [out, in]
        made = self.method(module, weight, seen)
        row = {"name": module, "shape": list(weight.shape), **made.report}
        if seen is not None and seen.ndim == 2:
            row["output_error"] = output_error(weight, made.weight, seen)
        set_weight(linear, made.weight)
        write(module, made)
        return {**row, "seconds": time.perf_counter() - start}
