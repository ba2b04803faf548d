"""`sqft run --dry-run`: what each step would take, and which are done; nothing is written, no weight is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqft_plugins.compress.float_model import FloatModel
from sqft_plugins.compress.settings import maker_of
from sqft_plugins.elastic import heuristic_rank
from sqft_plugins.plan import machine_now
from sqft_plugins.plan.config import has_weights, open_source
from sqft_plugins.plan.costs import Cost, Costs
from sqft_plugins.plan.settings import PlanSettings
from sqft_plugins.plan.sizes import Sizes
from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.inputs import check_inputs, check_model, grid_of, planned
from sqft_plugins.recipe.read import GEMMA, Recipe
from sqft_plugins.recipe.run import base_of, run_folder, steps_until, todo_of
from sqft_plugins.recipe.wire import Step, wire
from sqft_plugins.stages import Stages

UNKNOWN: Mapping[str, Any] = {"peak_memory": None, "seconds": None, "bytes": None}
"""What nobody can estimate."""
CHARACTERS = 4
"""Characters of a JSONL line for a token."""


def plan_recipe(
    recipe: Recipe, out: str | Path | None = None, *, until: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """The steps of `run_recipe` without running them → recipe, out, steps (name, verb, works_on, done, peak_memory,
    seconds and bytes, None where nothing is known), machine, disk_needed, fits (of the steps that are not done).

    Of a model on the hub, config.json alone is fetched. Raises what `run_recipe` raises before its first step.
    """
    # everything that can be refused
    out = run_folder(recipe, out)
    base = base_of(recipe, out)
    steps = steps_until(wire(recipe, out, base), until)
    todo = todo_of(recipe, steps, Stages(out, overwrite, what="run"))
    check_inputs(recipe.name, todo)
    source = _source(recipe, base)
    if source is not None and source.path == base.path:
        check_model(recipe.name, steps, base, todo)

    # a row a step
    planner = None if source is None else Planner(source, steps)
    rows: list[dict[str, Any]] = [
        {
            "name": step.name,
            "verb": step.verb,
            "works_on": [artefact.name for artefact in step.works_on],
            "done": step not in todo,
            **(UNKNOWN if planner is None else planner.of(step)),
        }
        for step in steps
    ]

    # the whole
    machine = None if planner is None else machine_now(planner.rate)
    left = [row for row in rows if not row["done"]]
    needed = sum(row["bytes"] or 0 for row in left)
    fits = machine is None or (
        needed <= machine["disk_free"] and all((row["peak_memory"] or 0) <= machine["memory_available"] for row in left)
    )
    return {
        "recipe": recipe.name,
        "out": str(out),
        "model": recipe.model,
        "steps": rows,
        "machine": machine,
        "disk_needed": needed,
        "fits": fits,
    }


class Planner:
    """Costs and sizes of single steps, by `sqft_plugins.plan`."""

    def __init__(self, source: FloatModel, steps: Sequence[Step]):
        self.source, self.steps, self.sizes = source, steps, Sizes(source)
        self.rate = Costs(source, PlanSettings(), self.sizes.stored).rate

    def of(self, step: Step) -> dict[str, Any]:
        """peak_memory and seconds of a step, and the bytes that it leaves on disk."""
        verbs = {
            "prune": self._prune, "quantize": self._quantize, "train": self._train, "search": self._search,
            "extract": self._extract, "merge": self._merge, "eval": self._eval, "export": self._export,
        }  # fmt: skip
        cost, size = verbs[step.verb](step)
        known = {} if cost is None else {"peak_memory": cost.peak_memory, "seconds": cost.seconds}
        return {**UNKNOWN, **known, "bytes": size}

    def _prune(self, step: Step) -> tuple[Cost | None, int | None]:
        settings = planned(step.section)
        pruner = get_manager().get("sqft_pruners", settings.method, "method")
        costs = self._costs_for(settings)
        return costs.prune(pruner, settings.patterns(costs.source)), Sizes(costs.source).pruned().total

    def _quantize(self, step: Step) -> tuple[Cost | None, int | None]:
        if maker_of(step.section.grid) is not None:
            return None, None
        settings = planned(step.section)
        quantizer = get_manager().get("sqft_quantizers", settings.quantize_method, "method")
        costs = self._costs_for(settings)
        return costs.quantize(quantizer), Sizes(costs.source).int4(settings.stamp).total

    def _train(self, step: Step) -> tuple[Cost | None, int | None]:
        section = step.section
        files = [Path(section.data)] if isinstance(section.data, str) else [Path(file) for file in section.data]
        lines = max(len(section.examples("data")), 1)
        tokens = sum(file.stat().st_size for file in files) // lines // CHARACTERS
        steps = section.steps if section.epochs is None else math.ceil(section.epochs * lines / section.batch_size)
        settings = PlanSettings(
            rank=section.rank, rank_choices=section.rank_choices, target_modules=_targets(section.target_modules),
            steps=steps, batch_size=section.batch_size, example_tokens=max(min(tokens, section.max_length), 1),
        )  # fmt: skip
        targets = settings.targets(self.source)
        return self._costs_for(settings).train(targets), self.sizes.adapter(targets, section.rank).total

    def _extract(self, step: Step) -> tuple[Cost | None, int | None]:
        section = next((s.section for s in self.steps if s.makes == step.uses["adapter"]), None)
        if section is None:
            return None, None
        settings = PlanSettings(target_modules=_targets(section.target_modules))
        rank = heuristic_rank(step.uses["adapter"].choices)  # another choice is about as large
        return None, self.sizes.adapter(settings.targets(self.source), rank).total

    def _merge(self, step: Step) -> tuple[Cost | None, int | None]:
        assert step.makes is not None
        if step.makes.kind == "file":
            return None, None
        made = self.sizes.int4(grid_of(step.makes, self.steps)) if step.makes.int4 else self.sizes.pruned()
        return self._costs_for(PlanSettings()).merge(), made.total

    def _eval(self, step: Step) -> tuple[Cost | None, int | None]:
        return self._costs_for(PlanSettings()).evaluate(), None

    def _search(self, step: Step) -> tuple[Cost | None, int | None]:
        return Cost("search", self._costs_for(PlanSettings()).evaluate().peak_memory, None), None

    def _export(self, step: Step) -> tuple[Cost | None, int | None]:
        cost = self._costs_for(PlanSettings()).export()
        exporter = get_manager().get("sqft_exporters", step.section.format, "format")
        if step.makes is None or step.makes.kind != "file" or not hasattr(exporter, "estimate"):
            return cost, None
        if not has_weights(self.source):
            return cost, None
        model = step.uses["model"]
        modules = list(self.source.modules) if model.int4 else []
        return cost, exporter.estimate(self.source.path, modules, grid_of(model, self.steps))["bytes"]

    def _costs_for(self, settings: PlanSettings) -> Costs:
        """One measurement of this machine serves all; the layers that are left out may differ."""
        source = open_source(self.source.path, settings.exclude) if settings.exclude else self.source
        return Costs(source, settings, self.sizes.stored, self.rate)


def _source(recipe: Recipe, base: Artefact) -> FloatModel | None:
    """The model that the estimates are of; None for an INT4 model, and for a model that is not made yet."""
    if base.int4 or (recipe.model == GEMMA and not base.path.is_dir()):
        return None
    return open_source(base.path)


def _targets(wanted: list[str] | str) -> list[str]:
    return [wanted] if isinstance(wanted, str) else list(wanted)
