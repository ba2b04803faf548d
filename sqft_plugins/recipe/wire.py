"""Which step works on what.

    model: gemma              # the artefact "base"
    prune: {sparsity: 0.5}    # works on base; makes the model "prune"
    train: {data: my.jsonl}   # works on prune; makes the adapter "train", which is over prune
    merge:                    # works on train and on prune; makes the model "merge"
    quantize: {model: prune}  # works on prune, since it names it; makes the model "quantize"
    eval:                     # works on quantize

A step works on the last artefact above it of the kind that it needs, or on the one that it names. Everything that is
wrong with the order of the steps is found here, before a file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqft_plugins.compress.settings import QuantizeSettings, maker_of
from sqft_plugins.errors import SQFTError, within
from sqft_plugins.recipe import export as exporting
from sqft_plugins.recipe.above import EXTRACTED, Above, Chosen
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.read import BASE, Recipe
from sqft_plugins.recipe.sections import Eval, Export, Extract, Merge, Prune, Quantize, Search, Train


@dataclass(frozen=True)
class Step:
    """One step, ready to run.

    uses: role ("model", "adapter", "grid", …) → what it works on.
    makes: None for an eval.
    rank: of extract and merge.
    targets: what an eval scores, adapters with their rank.
    options: an exporter's.
    """

    name: str
    section: Any
    uses: Mapping[str, Artefact]
    makes: Artefact | None
    rank: Chosen | None = None
    targets: Sequence[tuple[Artefact, Chosen | None]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verb(self) -> str:
        return str(self.section.verb)

    @property
    def target(self) -> Path:
        """Where its output goes; not of an eval."""
        assert self.makes is not None
        return self.makes.path

    @property
    def ranks(self) -> list[Chosen | None]:
        """Its own rank and those of its targets."""
        return [self.rank, *(rank for _, rank in self.targets)]

    @property
    def works_on(self) -> list[Artefact]:
        """Everything that it reads: steps and folders, without repeats."""
        used = [*self.uses.values(), *(artefact for artefact, _ in self.targets)]
        used += [rank.search for rank in self.ranks if rank is not None and rank.search is not None]
        used += [over for one in used if one.kind == "adapter" for over in (one.base, one.grid) if over is not None]
        return list({artefact.name: artefact for artefact in used}.values())


def wire(recipe: Recipe, out: Path, base: Artefact) -> list[Step]:
    """The steps of a recipe in their order. base: its model. Raises SQFTError, naming the step, where there is nothing
    above that the step can work on, and where the verb would refuse what is there."""
    made: dict[str, Artefact] = {BASE: base}
    steps = []
    for name, section in recipe.sections.items():
        above = Above(name, list(recipe.sections), dict(made), out)
        with within(f"{recipe.name}, {name}"):
            step = VERBS[section.verb](above, section)
        if step.makes is not None:
            made[name] = step.makes
        steps.append(step)
    return steps


# --- one function a verb: what stands above, section → step ---


def _prune(above: Above, section: Prune) -> Step:
    model = above.float_model(section.model)
    return Step(above.name, section, {"model": model}, above.makes("model", pruned=True, source=model))


def _quantize(above: Above, section: Quantize) -> Step:
    model = above.float_model(section.model)
    made = above.makes("model", int4=True, pruned=model.pruned, source=model)
    if (maker := maker_of(section.grid)) is not None:
        maker.check(model.name, section.part(QuantizeSettings), bool(model.pruned))
        made = replace(made, kind="file", path=made.path / f"model{maker.ending}")
    return Step(above.name, section, {"model": model}, made)


def _train(above: Above, section: Train) -> Step:
    # without a name, an adapter with a grid is over the float model that the grid was made from
    grid = None if section.grid is None else above.find(section.grid, "model")
    float_base = grid.source if grid is not None else None
    base = float_base if section.model is None and float_base else above.tunable(section.model)

    aware, masked = section.quantization_aware, section.sparse and section.tuner != "lora"
    if base.kind == "file":
        aware, masked = section.tuner == "sqft", False
    if grid is not None and not grid.int4:
        raise SQFTError(f"grid {grid.name} is float: name a quantized model, such as a quantize step above")
    if aware and not (base.int4 or grid):
        raise SQFTError(
            f"quantization_aware over the float {base.name} needs a grid: put quantize above, or name grid:"
        )
    if base.int4 and masked and not aware:
        raise SQFTError(
            f"{base.name} is quantized, where a masked adapter cannot merge back: add quantization_aware: true, or "
            "sparse: false and leave the adapter unmerged"
        )

    choices = tuple(section.rank_choices or [section.rank])
    made = above.makes("adapter", base=base, grid=grid, masked=masked, quantization_aware=aware, choices=choices)
    return Step(above.name, section, {"model": base, **({"grid": grid} if grid else {})}, made)


def _search(above: Above, section: Search) -> Step:
    adapter = above.elastic_adapter(section.adapter)
    if (section.data is None) == (section.task is None):
        raise SQFTError("give the questions: either data, a JSONL, or task")
    if section.against == "latency" and adapter.masked:
        raise SQFTError(f"against: latency is for dense adapters, {adapter.name} is masked: use parameters")

    uses = above.over(section.model, adapter, section.grid)
    return Step(above.name, section, uses, above.makes("ranks", base=adapter))


def _extract(above: Above, section: Extract) -> Step:
    adapter = above.elastic_adapter(section.adapter)
    made = replace(adapter, name=above.name, path=above.out / above.name, step=True, choices=EXTRACTED)
    return Step(above.name, section, {"adapter": adapter}, made, rank=above.rank(section.rank, adapter))


def _merge(above: Above, section: Merge) -> Step:
    adapter = above.find(section.adapter, "adapter")
    uses = above.over(section.model, adapter, section.grid)
    base, codes = uses["model"], adapter.codes
    if codes is None and base.int4:
        raise SQFTError(
            f"{adapter.described} is over the quantized {base.name}, where a merge would lose it: leave merge out, or "
            "train with quantization_aware: true"
        )
    if not adapter.masked and base.pruned:
        raise SQFTError(
            f"{adapter.described} would fill the zeros of {base.name}: leave merge out, or train with sparse: true"
        )

    made = above.makes("model", int4=codes is not None, pruned=base.pruned, source=base)
    if base.kind == "file":
        made = replace(made, kind="file", path=made.path / f"model{base.path.suffix}")
    return Step(above.name, section, uses, made, rank=above.rank(section.rank, adapter))


def _eval(above: Above, section: Eval) -> Step:
    found = [above.scored(name) for name in section.targets] or [above.last("model", "adapter", "file")]
    if section.rank is not None and not any(artefact.kind == "adapter" for artefact in found):
        raise SQFTError(f"rank={section.rank!r} is for adapters, {found[-1].name} is not one: leave it out")

    # one rank for several targets: it is for those that have a choice
    ranks = [
        above.rank(section.rank if len(one.choices) > 1 else None, one) if one.kind == "adapter" else None
        for one in found
    ]
    return Step(above.name, section, {}, None, targets=tuple(zip(found, ranks, strict=True)))


def _export(above: Above, section: Export) -> Step:
    """A format exports an adapter where its command has the argument ADAPTER, else a model."""
    options = {key: value for key, value in section.model_dump().items() if key not in Export.model_fields}
    if "adapter" in exporting.parameters(section.format):
        uses = _exported_adapter(above, section, options.pop("base", None))
    else:
        uses = {"model": above.find(section.model, "model")}

    target = exporting.target(section.format, above.out / above.name)
    values = {**options, **{role: artefact.path for role, artefact in uses.items()}}
    exporting.check(section.format, values, target)
    model = uses.get("model")
    made = above.makes("part" if "adapter" in uses else "file", source=model, int4=model is not None and model.int4)
    made = replace(made, path=target)
    return Step(above.name, section, uses, made, options=options)


def _exported_adapter(above: Above, section: Export, base: str | None) -> dict[str, Artefact]:
    """The adapter; as `model` what it is served over, for formats that ask for it: the INT4 model of its codes, else
    its base; as `base` the float model that it was trained over, where that is another one."""
    takes = exporting.parameters(section.format)
    adapter = above.find(section.adapter, "adapter")
    exporting.check_adapter(section.format, adapter)
    uses = {"adapter": adapter}

    served = adapter.codes or adapter.base
    if "model" in takes:
        uses["model"] = above.find(section.model, "model") if section.model or served is None else served

    trained = above.find(base, "model") if base else adapter.base
    if "base" in takes and trained is not None and trained is not uses.get("model"):
        uses["base"] = trained
    return uses


VERBS: Mapping[str, Callable[[Above, Any], Step]] = {
    "prune": _prune, "quantize": _quantize, "train": _train, "search": _search,
    "extract": _extract, "merge": _merge, "eval": _eval, "export": _export,
}  # fmt: skip
