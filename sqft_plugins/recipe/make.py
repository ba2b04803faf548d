"""What each step does: it calls the function of its verb."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint import write_file
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.settings import PruneSettings, QuantizeSettings, maker_of
from sqft_plugins.evaluate.harness import choose_tasks
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.recipe import export as exporting
from sqft_plugins.recipe.above import Chosen
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.measured import adapter_numbers, file_numbers, folder_numbers
from sqft_plugins.recipe.sections import Eval
from sqft_plugins.recipe.wire import Step
from sqft_plugins.search.settings import SearchSettings
from sqft_plugins.stages import Stages
from sqft_plugins.tune.extract import extract_adapter
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.settings import AdapterSettings, TrainSettings
from sqft_plugins.tune.train import train_adapter


class Maker:
    """One method a verb, from a step to its result.

    out: the run folder.
    stages: the key of a step names its search's study, so that a study of other inputs is never gone on with.
    results: step → its result, of the steps before: only the result of an export tells whether there are parts.
    """

    def __init__(self, out: Path, stages: Stages, results: Mapping[str, Mapping[str, Any]]):
        self.out, self.stages, self.results = out, stages, results

    def make(self, step: Step) -> dict[str, Any]:
        """The result, with what was measured of the output."""
        verbs = {
            "prune": self.prune, "quantize": self.quantize, "train": self.train, "search": self.search,
            "extract": self.extract, "merge": self.merge, "eval": self.eval, "export": self.export,
        }  # fmt: skip
        result = verbs[step.verb](step)
        return {"verb": step.verb, **result, **measured(step, result)}

    def prune(self, step: Step) -> dict[str, Any]:
        given = step.section.part(PruneSettings).keywords()
        return prune_folder(step.uses["model"].path, step.target, overwrite=True, **given)

    def quantize(self, step: Step) -> dict[str, Any]:
        settings, model = step.section.part(QuantizeSettings), step.uses["model"].path
        maker = maker_of(settings.grid)
        if maker is None:
            return quantize_folder(model, step.target, overwrite=True, **settings.keywords())
        step.target.parent.mkdir(parents=True, exist_ok=True)
        return dict(maker.make(model, step.target, settings, overwrite=True))

    def train(self, step: Step) -> dict[str, Any]:
        s, grid = step.section, step.uses.get("grid")
        return train_adapter(
            step.uses["model"].path,
            step.target,
            s.examples("data"),
            s.part(AdapterSettings).model_copy(update={"grid": None if grid is None else str(grid.path)}),
            s.part(TrainSettings),
            tuner=s.tuner,
            text=s.general_text(s),
            eval_examples=s.examples("eval_data"),
            overwrite=True,
            anew=True,  # a recipe that was changed
        )

    def search(self, step: Step) -> dict[str, Any]:
        from sqft_plugins.search.run import search_adapter

        s, grid = step.section, step.uses.get("grid")
        return search_adapter(
            step.uses["model"].path,
            step.uses["adapter"].path,
            s.questions("task"),
            s.part(SearchSettings),
            out=step.target,
            study=self.out / "stages" / f"{step.name}-{self.stages.keys[step.name][:12]}.journal",
            starts=s.starts,
            save=s.save,
            grid=None if grid is None else grid.path,
            overwrite=True,
        )

    def extract(self, step: Step) -> dict[str, Any]:
        return extract_adapter(step.uses["adapter"].path, step.target, _rank(step.rank), overwrite=True)

    def merge(self, step: Step) -> dict[str, Any]:
        grid = step.uses.get("grid")
        return merge_folder(
            step.uses["model"].path,
            step.uses["adapter"].path,
            step.target,
            _rank(step.rank),
            overwrite=True,
            grid=None if grid is None else grid.path,
        )

    def eval(self, step: Step) -> dict[str, Any]:
        """One report a target, in files of their own, too."""
        scores = {}
        labels = labels_of([artefact for artefact, _ in step.targets], self.stages.keys)
        for label, (artefact, rank) in zip(labels, step.targets, strict=True):
            scores[label] = evaluate(step.section, self.written(artefact), rank)
            file = self.out / step.name / f"{label}.json"
            with write_file(file, overwrite=True) as target:
                target.write_text(json.dumps(scores[label], indent=2, default=str) + "\n")
        return {"out": str(self.out / step.name), "scores": scores}

    def export(self, step: Step) -> dict[str, Any]:
        values = {**step.options, **{role: artefact.path for role, artefact in step.uses.items()}}
        step.target.parent.mkdir(parents=True, exist_ok=True)
        return exporting.export(step.section.format, values, step.target)

    def written(self, artefact: Artefact) -> Artefact:
        """The artefact with the path to open: of a file that an export has written in parts, the first part."""
        if artefact.kind != "file" or not artefact.step:
            return artefact
        return replace(artefact, path=exporting.files_of(self.results.get(artefact.name, {}), artefact.path)[0])


def measured(step: Step, result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of what a step has made, as `measured`; empty for ranks and scores."""
    made = step.makes
    if made is None or made.kind == "ranks":
        return {}
    if made.kind == "model" or (made.kind == "file" and step.verb != "export"):
        return {"measured": folder_numbers(made.path)}
    if made.kind == "adapter":
        assert made.base is not None
        return {"measured": adapter_numbers(made.path, made.base.path)}
    files = exporting.files_of(result, made.path)
    return {"measured": file_numbers(step.section.format, made.source, files)}


def evaluate(section: Eval, artefact: Artefact, rank: Chosen | None) -> dict[str, Any]:
    """The report of `sqft eval`, with model, adapter and rank."""
    model = artefact.base if artefact.kind == "adapter" else artefact
    assert model is not None
    adapter = artefact.path if artefact.kind == "adapter" else None
    # one section is for targets of several kinds: each gets what its runtime takes
    meant = {"threads": artefact.kind == "file", "dtype": artefact.kind != "file"}
    meant["accelerate"] = artefact.kind == "model" and artefact.int4
    options = {name: value for name, value in section.runtime().items() if meant[name]}

    chosen, prose = choose_tasks(section.tasks, section.data), section.prose("text")
    opened = open_candidate(model.path, adapter, _rank(rank), batch_size=section.batch_size, **options)
    with closing(opened) as candidate:
        report = evaluate_model(candidate, chosen, text=prose, **section.questions())

    about: Mapping[str, Any] = {"model": str(model.path), "adapter": None if adapter is None else str(adapter)}
    return {**about, "rank": None if rank is None else rank.read(), **report}


def labels_of(targets: Sequence[Artefact], steps: Collection[str]) -> list[str]:
    """What the scores of each target are called: a step's name; of a path its last part, or so many of them as make it
    the only one."""
    parts = [(target.name,) if target.step else target.path.parts[1:] for target in targets]
    for count in range(1, max(map(len, parts)) + 1):
        labels = ["-".join(one[-count:]) for one in parts]
        paths = [label for label, target in zip(labels, targets, strict=True) if not target.step]
        if len({*labels}) == len({*parts}) and not {*paths} & {*steps}:
            break
    return labels


def _rank(rank: Chosen | None) -> Any:
    return "heuristic" if rank is None else rank.read()


def output_of(step: Step) -> str | None:
    """What a finished step has left in the run folder; None for an exporter that writes elsewhere."""
    if step.verb == "export" and exporting.has_own_place(step.section.format):
        return None
    return f"{step.name}/config.json" if step.makes is not None and step.makes.kind == "model" else step.name
