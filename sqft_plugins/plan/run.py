"""`sqft plan` as a function. No weight is loaded.

Sizes are exact arithmetic over the headers of the model's files; memory and time are estimates, and say so.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sqft_plugins.compress.coverage import coverage_of
from sqft_plugins.elastic import heuristic_rank
from sqft_plugins.grid import INT4
from sqft_plugins.plan.config import open_source
from sqft_plugins.plan.costs import EFFICIENCY, Costs
from sqft_plugins.plan.exports import exports
from sqft_plugins.plan.machine import available_memory
from sqft_plugins.plan.settings import PlanSettings
from sqft_plugins.plan.sizes import Sizes
from sqft_plugins.plugins import get_manager


def plan_folder(model: str | Path, settings: PlanSettings | None = None) -> dict[str, Any]:
    """The plan for a float model, as JSON:

        model, model_type, settings
        modules, weights    of the linear layers that are compressed
        coverage            what part of the model these are (`Coverage.as_dict`)
        targets             how many layers the adapter is put on
        adapter_coverage    what part of the model these are
        stages              what lies on disk after each step (`sizes.Stage`)
        steps               what each step takes (`costs.Cost`), and whether it fits the memory
        exports             a row a format (`exports.exports`)
        machine             (`machine_now`)
        disk_needed         bytes of all stages together
        fits                all of it, memory and disk

    model: a folder, or a name on the hub; config.json is enough (`config.open_source`).

    Raises SQFTError for whatever a step would refuse: a folder that is no float model, a method that is unknown, a
    sparsity, an N:M, a group size, a pattern or a search space that the model cannot have.
    """
    settings = settings or PlanSettings()

    # everything that can be refused
    pruner = get_manager().get("sqft_pruners", settings.method, "--method")
    quantizer = get_manager().get("sqft_quantizers", settings.quantize_method, "--quantize-method")
    source = open_source(model, settings.exclude)
    settings.check(source)
    source.check_coverage("pruning")
    patterns, targets = settings.patterns(source), settings.targets(source)

    # sizes on disk
    sizes = Sizes(source)
    stages = [
        sizes.of_source(),
        sizes.pruned(),
        sizes.int4(settings.stamp),
        *([sizes.compact(settings.stamp, patterns)] if settings.stamp.kind == INT4 else []),
        sizes.pruned("merged"),
        sizes.int4(settings.stamp, f"merged {settings.stamp.label}"),
    ]
    if targets:
        stages.append(sizes.adapter(targets, settings.rank, f"adapter, rank {settings.rank}"))
        if choices := settings.adapter().rank_choices:
            half = heuristic_rank(choices)
            stages.append(sizes.adapter(targets, half, f"adapter, rank {half}"))

    # memory and time
    start = time.perf_counter()
    costs = Costs(source, settings, sizes.stored)
    recovery = [costs.recover()] if settings.recover else []
    steps = [costs.prune(pruner, patterns), *recovery, costs.quantize(quantizer)]
    steps += [costs.train(targets), costs.merge()] if targets else []
    steps += [costs.evaluate(), costs.export()]

    # whether it fits this machine
    machine = {**machine_now(costs.rate), "measured_seconds": time.perf_counter() - start}
    rows = [{**asdict(step), "fits": step.peak_memory <= machine["memory_available"]} for step in steps]
    needed = sum(stage.total for stage in stages[1:])
    fits = all(row["fits"] for row in rows) and needed <= machine["disk_free"]

    return {
        "model": str(model),
        "model_type": source.folder.config.get("model_type"),
        "modules": len(source.modules),
        "weights": sizes.weights,
        "coverage": source.coverage.as_dict(),
        "targets": len(targets),
        "adapter_coverage": coverage_of(source.skeleton.model, targets).as_dict(),
        "settings": settings.model_dump(),
        "stages": [asdict(stage) for stage in stages],
        "steps": rows,
        "exports": exports(source, settings),
        "machine": machine,
        "disk_needed": needed,
        "fits": fits,
    }


def machine_now(rate: float) -> dict[str, Any]:
    """memory_available and disk_free in bytes, threads, load, gemm_gflops. rate: `Costs.rate`."""
    return {
        "memory_available": available_memory(),
        "disk_free": shutil.disk_usage(Path.cwd()).free,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "gemm_gflops": rate / EFFICIENCY / 1e9,
    }
