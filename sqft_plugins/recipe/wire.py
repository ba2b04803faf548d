"""Which step works on what. The rule: on the last thing above it that it can work on, or on what it names.

Everything that is wrong with the order of the steps is found here, before a file is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqft_plugins.elastic import Rank, parse_rank
from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe import export
from sqft_plugins.recipe.artefact import NOUN, Artefact, Kind, from_path, ranks_from_file
from sqft_plugins.recipe.read import BASE, Recipe
from sqft_plugins.recipe.sections import Eval, Export, Extract, Merge, Prune, Quantize, Search, Section, Train

EXTRACTED = (0,)
"""The choices of a sub-adapter: one, whatever it is."""
MAKERS = {"model": "model", "adapter": "train", "ranks": "search", "file": "export"}


@dataclass(frozen=True)
class Chosen:
    """A rank: what the verb's function takes, or a search that will find it."""

    rank: Rank
    search: Artefact | None = None

    def read(self) -> Rank:
        """The rank; a search must have run by now."""
        return self.rank if self.search is None else ranks_from_file(str(self.search.path / "configuration.json"))


@dataclass(frozen=True)
class Step:
    """One step, ready to run. uses: role ("model", "adapter", "grid", …) → what it works on. makes: None for an eval.
    rank: of extract and merge. targets: what an eval scores, adapters with their rank. options: an exporter's."""

    name: str
    section: Any
    uses: Mapping[str, Artefact]
    makes: Artefact | None
    rank: Chosen | None = None
    targets: Sequence[tuple[Artefact, Chosen | None]] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verb(self) -> str:
        return self.section.verb

    @property
    def works_on(self) -> list[Artefact]:
        """Everything that it reads: steps and folders, without repeats."""
        chosen = [self.rank, *(rank for _, rank in self.targets)]
        used = [*self.uses.values(), *(artefact for artefact, _ in self.targets)]
        used += [rank.search for rank in chosen if rank is not None and rank.search is not None]
        used += [over for one in used if one.kind == "adapter" for over in (one.base, one.grid) if over is not None]
        return list({artefact.name: artefact for artefact in used}.values())


def wire(recipe: Recipe, out: Path, base: Artefact) -> list[Step]:
    """The steps of a recipe in their order. base: its model. Raises SQFTError, naming the step, for one that cannot
    work on what it would work on."""
    wiring = Wiring(recipe, out, base)
    return [wiring.step(name, section) for name, section in recipe.sections.items()]


class Wiring:
    """The artefacts so far, in their order."""

    def __init__(self, recipe: Recipe, out: Path, base: Artefact):
        self.names = list(recipe.sections)
        self.label = recipe.name
        self.out = out
        self.made: dict[str, Artefact] = {BASE: base}

    def step(self, name: str, section: Section) -> Step:
        self.name = name
        try:
            step: Step = getattr(self, section.verb)(section)
        except SQFTError as error:
            raise SQFTError(f"{self.label}, {name}: {error}") from error
        if step.makes is not None:
            self.made[name] = step.makes
        return step

    # --- one method a verb ---

    def prune(self, section: Prune) -> Step:
        model = self._float(section.model)
        return self._step(section, {"model": model}, self._model(pruned=True, source=model))

    def quantize(self, section: Quantize) -> Step:
        model = self._float(section.model)
        return self._step(section, {"model": model}, self._model(int4=True, pruned=model.pruned, source=model))

    def train(self, section: Train) -> Step:
        settings = section.adapter_settings(section.grid)
        section.train_settings()
        grid = None if section.grid is None else self._find(section.grid, "model")
        float_base = grid.source if grid is not None else None
        base = float_base if section.model is None and float_base else self._find(section.model, "model")
        if grid is not None and not settings.quantization_aware:
            raise SQFTError(f"grid {grid.name} is for a quantization-aware adapter: add quantization_aware: true")
        if grid is not None and not grid.int4:
            raise SQFTError(f"grid {grid.name} is float: name an INT4 model, such as a quantize step above")
        if settings.quantization_aware and not (base.int4 or grid):
            raise SQFTError(
                f"quantization_aware over the float {base.name} needs an INT4 grid: put quantize above, or name grid:"
            )
        if settings.quantization_aware and settings.dropout:
            raise SQFTError(f"dropout={settings.dropout} cannot be used with quantization_aware: leave it out")
        masked = settings.sparse and section.tuner != "lora"
        if base.int4 and masked and not settings.quantization_aware:
            raise SQFTError(
                f"{base.name} is INT4, where a masked adapter cannot merge back: add quantization_aware: true, or "
                "sparse: false and leave the adapter unmerged"
            )
        adapter = Artefact(
            self.name,
            "adapter",
            self.out / self.name,
            base=base,
            grid=grid,
            masked=masked,
            quantization_aware=settings.quantization_aware,
            choices=tuple(settings.rank_choices or [settings.rank]),
        )
        return self._step(section, {"model": base, **({"grid": grid} if grid else {})}, adapter)

    def search(self, section: Search) -> Step:
        settings = section.settings()
        adapter = self._elastic(section.adapter)
        if (section.data is None) == (section.task is None):
            raise SQFTError("give the questions: either data, a JSONL, or task")
        if settings.against == "latency" and adapter.masked:
            raise SQFTError(f"against: latency is for dense adapters, {adapter.name} is masked: use parameters")
        ranks = Artefact(self.name, "ranks", self.out / self.name, base=adapter)
        return self._step(section, self._over(section, adapter), ranks)

    def extract(self, section: Extract) -> Step:
        adapter = self._elastic(section.adapter)
        made = replace(adapter, name=self.name, path=self.out / self.name, step=True, choices=EXTRACTED)
        return self._step(section, {"adapter": adapter}, made, rank=self._rank(section.rank, adapter))

    def merge(self, section: Merge) -> Step:
        adapter = self._find(section.adapter, "adapter")
        uses = self._over(section, adapter)
        base, codes = uses["model"], adapter.codes
        if codes is None and base.int4:
            raise SQFTError(
                f"{adapter.described} is over the INT4 {base.name}, where a merge would lose it: leave merge out, or "
                "train with quantization_aware: true"
            )
        if not adapter.masked and base.pruned:
            raise SQFTError(
                f"{adapter.described} would fill the zeros of {base.name}: leave merge out, or train with sparse: true"
            )
        made = self._model(int4=codes is not None, pruned=base.pruned, source=base)
        return self._step(section, uses, made, rank=self._rank(section.rank, adapter))

    def eval(self, section: Eval) -> Step:
        found = [self._scored(name) for name in section.targets] or [self._last(("model", "adapter", "file"))]
        adapters = [artefact for artefact in found if artefact.kind == "adapter"]
        if section.rank is not None and not adapters:
            raise SQFTError(f"rank={section.rank!r} is for adapters, {found[-1].name} is none: leave it out")
        # one rank for several targets: it is for those that have a choice
        ranks = [
            self._rank(section.rank if len(one.choices) > 1 else None, one) if one.kind == "adapter" else None
            for one in found
        ]
        return self._step(section, {}, None, targets=tuple(zip(found, ranks, strict=True)))

    def export(self, section: Export) -> Step:
        takes = export.parameters(section.format)
        options = {key: value for key, value in section.model_dump().items() if key not in Export.model_fields}
        uses: dict[str, Artefact] = {}
        if "adapter" in takes:
            adapter = self._find(section.adapter, "adapter")
            export.check_adapter(section.format, adapter)
            uses["adapter"] = adapter
            codes = adapter.codes or adapter.base
            if "model" in takes:
                uses["model"] = self._find(section.model, "model") if section.model or codes is None else codes
            given = options.pop("base", None)
            base = self._find(given, "model") if given else adapter.base
            if "base" in takes and base is not None and base is not uses.get("model"):
                uses["base"] = base
        else:
            uses["model"] = self._find(section.model, "model")
        values = {**options, **{role: artefact.path for role, artefact in uses.items()}}
        target = export.target(section.format, self.out / self.name)
        export.check(section.format, values, target)
        made = Artefact(self.name, "part" if "adapter" in uses else "file", target, source=uses.get("model"))
        return self._step(section, uses, made, options=options)

    # --- finding ---

    def _step(self, section: Section, uses: Mapping[str, Artefact], makes: Artefact | None, **more: Any) -> Step:
        return Step(self.name, section, uses, makes, **more)

    def _model(self, **facts: Any) -> Artefact:
        return Artefact(self.name, "model", self.out / self.name, **facts)

    def _over(self, section: Any, adapter: Artefact) -> dict[str, Artefact]:
        """The adapter, the model that it is over, and its grid; the section may name others."""
        base = self._find(section.model, "model") if section.model else adapter.base
        grid = self._find(section.grid, "model") if section.grid else adapter.grid
        assert base is not None
        return {"model": base, "adapter": adapter, **({"grid": grid} if grid else {})}

    def _float(self, name: str | None) -> Artefact:
        model = self._find(name, "model")
        if model.int4:
            raise SQFTError(f"{model.name} is INT4 already: name a float model with model:")
        return model

    def _elastic(self, name: str | None) -> Artefact:
        adapter = self._find(name, "adapter")
        if len(adapter.choices) < 2:
            raise SQFTError(f"{adapter.name} has a fixed rank: give its train step rank_choices, such as [32, 24, 16]")
        return adapter

    def _rank(self, rank: Any, adapter: Artefact) -> Chosen:
        """Where the section says none: that of the last search of this adapter, else the heuristic one, or the only
        one. Raises SQFTError for one that the adapter does not have."""
        if adapter.choices == EXTRACTED or (rank is None and len(adapter.choices) < 2):
            return Chosen("max")
        if rank is None:
            searches = [made for made in self.made.values() if made.kind == "ranks" and made.base == adapter]
            return Chosen("heuristic", searches[-1] if searches else None)
        if isinstance(rank, str) and (rank in self.made or rank in self.names):
            return Chosen("heuristic", self._find(rank, "ranks"))
        if isinstance(rank, str) and rank.endswith(".json"):
            rank = ranks_from_file(rank)
        searchers = {name for known in get_manager().hook.sqft_searchers() for name in known}
        for number in rank.values() if isinstance(rank, Mapping) else [rank]:
            if not (isinstance(number, str) and number in searchers):
                parse_rank(number, adapter.choices)
        return Chosen(rank)

    def _scored(self, name: str) -> Artefact:
        found = self.made.get(name) or self._find(name, "model", any_kind=True)
        if found.kind in ("ranks", "part"):
            raise SQFTError(f"{name} is {NOUN[found.kind]}, which has no score of its own: name a model or an adapter")
        return found

    def _find(self, name: str | None, kind: Kind, any_kind: bool = False) -> Artefact:
        if name is None:
            return self._last((kind,))
        if name in self.made:
            found = self.made[name]
        elif name in self.names:
            where = "itself" if name == self.name else "below"
            raise SQFTError(f"{name!r} is {where}: a step works on what stands above it")
        elif Path(name).exists():
            found = from_path(Path(name))
        else:
            raise SQFTError(f"{name!r} is neither a step above nor a path: {nearest(name, self.made)}")
        if found.kind != kind and not any_kind:
            raise SQFTError(f"{name} is {NOUN[found.kind]}, {NOUN[kind]} is needed: name another")
        return found

    def _last(self, kinds: Sequence[Kind]) -> Artefact:
        for artefact in reversed(self.made.values()):
            if artefact.kind in kinds:
                return artefact
        raise SQFTError(f"no step above makes {NOUN[kinds[0]]}: add {MAKERS[kinds[0]]} above, or name a folder")
