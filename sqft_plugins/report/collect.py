"""`sqft report` up to the page: everything that a folder holds, as one `Report`.

1. `find` names what lies in the folder.
2. `Builder.take` reads one finding after the other: models, adapters, searches; of runs and evaluations it keeps what
   they tell about the others.
3. `Builder.finish` joins these: the rows of a demo take the place of the outputs that they scored, the steps of a
   recipe give their outputs an order and seconds, evaluations go to the artefacts that they name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqft_plugins.demo.settings import command_line
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.hardware import machine_facts
from sqft_plugins.inspect import inspect_path
from sqft_plugins.inspect.plot import block_and_kind
from sqft_plugins.plugins.packages import installed
from sqft_plugins.progress import say
from sqft_plugins.report import read
from sqft_plugins.report.artefacts import of_adapter, of_demo, of_model, of_unread_model
from sqft_plugins.report.data import Artefact, Layers, Ranks, Report
from sqft_plugins.report.find import DEMO, RECIPE, Found, find
from sqft_plugins.report.records import DemoRecord, Measured
from sqft_plugins.report.summary import summary

PACKAGES = ("sqft-plugins", "torch", "transformers", "peft", "compressed-tensors", "optuna", "lm-eval", "vllm")


def collect(path: str | Path, *, title: str | None = None, quick: bool = False) -> Report:
    """Everything that `path` holds: a run of `sqft demo` or of a recipe, a model, an adapter, a search, an evaluation,
    or a folder with several of these.

    title: the heading of the page; default the name of the folder.
    quick: read no weights, so no map of zeros.

    What is not recognised or damaged is named in `left_out`. Raises CheckpointError where nothing is there to report.
    """
    root = Path(path)
    found = find(root)
    report = Report(path=str(path), title=title or root.resolve().name or str(root))

    builder = Builder(report, root, quick)
    for one in found:
        builder.take(one)
    if builder.read == 0:
        reasons = "; ".join(f"{name}: {why}" for name, why in report.left_out.items()) or "it is empty"
        raise CheckpointError(f"{path} holds nothing to report ({reasons}): give the folder of a run or of a model")

    builder.finish()
    report.environment = machine_facts() | installed(PACKAGES)
    report.summary = summary(report)
    return report


class Builder:
    """Fills a report, one finding after the other. A finding that is damaged is left out; its name and the reason are
    logged and stand in the report."""

    def __init__(self, report: Report, root: Path, quick: bool):
        self.report, self.root, self.quick, self.read = report, root, quick, 0
        self.runs: list[Found] = []
        self.evaluations: list[tuple[str, dict[str, Any]]] = []
        self.measured: dict[str, Measured] = {}

    def take(self, found: Found) -> None:
        """Reads one finding."""
        if found.kind == "unknown":
            self.leave(found.name, "not recognised")
            return

        say(f"reading {found.name}")
        takers: dict[str, Callable[[Found], None]] = {
            "run": self.run,
            "model": self.model,
            "file": self.model,
            "adapter": self.adapter,
            "search": self.search,
            "evaluation": self.evaluation,
        }
        try:
            takers[found.kind](found)
        except SQFTError as error:
            self.leave(found.name, str(error))
        else:
            self.read += 1

    def leave(self, name: str, why: str) -> None:
        """Leaves a finding out."""
        self.report.left_out[name] = why
        say(f"left out: {name}: {why}")

    # --- kinds of findings ---

    def run(self, found: Found) -> None:
        """The steps of a demo or a recipe; its outputs are findings of their own."""
        prefix = self._prefix(found)
        steps = read.read_steps(found.path)
        self.report.steps += [read.step(f"{prefix}{name}", record) for name, record in steps.items()]
        for name, record in steps.items():
            scored = read.evaluations(record.result.model_extra, name)
            self.evaluations += [(f"{prefix}{label}", one) for label, one in scored]
            self.measured[f"{prefix}{name}"] = record.result.measured

        recipe = found.path / RECIPE
        if recipe.is_file():
            text = recipe.read_text(errors="replace")
            self.report.recipe = text if self.report.recipe is None else f"{self.report.recipe}\n---\n{text}"
        self.runs.append(found)

    def model(self, found: Found) -> None:
        if self.quick:
            self.report.artefacts.append(of_unread_model(found.name, found.path))
            return
        artefact, layers = of_model(found.name, found.path, inspect_path(found.path))
        self.report.artefacts.append(artefact)
        self.report.layers.append(layers)

    def adapter(self, found: Found) -> None:
        artefact = of_adapter(found.name, found.path, inspect_path(found.path))
        self.report.artefacts.append(artefact)
        training = read.read_training(found.path, found.name)
        if training is not None:
            artefact.seconds = training.seconds
            self.report.trainings.append(training)

    def search(self, found: Found) -> None:
        search = read.read_search(found.path, found.name)
        self.report.searches.append(search)
        ranks = search.result["chosen"].get("ranks")
        if isinstance(ranks, Mapping) and ranks and all(isinstance(rank, int) for rank in ranks.values()):
            cells = [(*block_and_kind(module), rank) for module, rank in ranks.items()]
            self.report.ranks.append(Ranks(name=found.name, cells=cells))

    def evaluation(self, found: Found) -> None:
        report = read.read_json(dict[str, Any], found.path)
        self.evaluations += read.evaluations(report, found.name.removesuffix(".json"))

    # --- what they tell about each other ---

    def finish(self) -> None:
        """Joins what was scored to what was found."""
        for found in self.runs:
            try:
                self._join_demo(found)
            except SQFTError as error:
                self.leave(f"{found.name}/{DEMO}", str(error))
        self._join_steps()

        for number, (name, one) in enumerate(self.evaluations):
            if all(one != earlier for _, earlier in self.evaluations[:number]):  # a recipe keeps it in a file, too
                self._join_evaluation(name, one)

        # a model before its GGUF file, for it has a mask
        place = {row.name: (row.kind == "GGUF", index) for index, row in enumerate(self.report.artefacts)}
        self.report.layers.sort(key=lambda layers: place[layers.name])
        self._merge_equal_maps()

    def _join_demo(self, run: Found) -> None:
        """The scored stages of a demo take the place of the outputs that they scored, and give them their names."""
        file = run.path / DEMO
        if not file.is_file():
            return

        record = read.read_json(DemoRecord, file)
        prefix = self._prefix(run)
        known = {artefact.name: artefact for artefact in self.report.artefacts}
        rows = [of_demo(stage, record.task, known, prefix) for stage in record.stages]
        taken = {row.path: row.name for row in rows if row.path}
        self.report.artefacts = rows + [one for one in self.report.artefacts if one.path not in taken]
        names = {one.name: taken[one.path] for one in known.values() if one.path in taken}
        for layers in self.report.layers:
            layers.name = names.get(layers.name, layers.name)

        self.report.settings |= {f"{prefix}{key}": value for key, value in record.settings.items() if value is not None}
        if not prefix:
            self.report.command = command_line(record.settings, run.path)

    def _join_steps(self) -> None:
        """What the steps of a recipe tell about their outputs; the artefacts in the order in which they were made."""
        order = {step.name: (place, step.seconds) for place, step in enumerate(self.report.steps)}
        made = {}
        for artefact in self.report.artefacts:
            name = next((name for name in order if _is_output(artefact.name, name)), None)
            made[artefact.name] = order[name][0] if name else len(order)
            if name is None or artefact.scores:
                continue
            if artefact.seconds is None:
                artefact.seconds = order[name][1]
            if artefact.zeros_kept is None:
                artefact.zeros_kept = self.measured[name].zeros_kept
            if artefact.bits_per_weight is None and artefact.kind != "adapter":
                artefact.bits_per_weight = self.measured[name].bits_per_weight

        if not any(artefact.scores for artefact in self.report.artefacts):  # the demo's rows have their order
            self.report.artefacts.sort(key=lambda artefact: made[artefact.name])

    def _join_evaluation(self, name: str, report: Mapping[str, Any]) -> None:
        """Scores go to the artefact that was scored; to a new row where it is not in this folder."""
        artefacts = self.report.artefacts
        model = report.get("model") or report.get("model_name")  # the second: lm-evaluation-harness
        asked = report.get("adapter") or model
        target = self._named(str(asked)) if asked else None

        if target is None:  # mostly what a run began with, so these rows come first
            target = Artefact(name=name, kind="evaluation", what=f"{model}" if asked else "")
            artefacts.insert(sum(row.kind == "evaluation" for row in artefacts), target)
        elif report.get("adapter") and target.scores:  # the same adapter at another rank
            target = replace(target, name=f"{target.name} at rank {report.get('rank')}", scores=[])
            artefacts.append(target)
        target.scores += read.scores(report)

    def _named(self, path: str) -> Artefact | None:
        """The artefact at that path; a run that was moved keeps the paths of its old place, so then the artefact of
        that name."""
        rows = [artefact for artefact in self.report.artefacts if artefact.path]
        same = [row for row in rows if Path(str(row.path)).resolve() == Path(path).resolve()]
        return next(iter(same or [row for row in rows if Path(str(row.path)).name == Path(path).name]), None)

    def _merge_equal_maps(self) -> None:
        """A merge and INT4 keep the zeros where they are: one map stands for all that are alike."""
        kept: dict[tuple[float, ...], Layers] = {}
        for layers in self.report.layers:
            alike = tuple(sorted(round(zeros, 3) for _, _, zeros in layers.cells))
            first = kept.setdefault(alike, layers)
            if first is not layers:
                first.same.append(layers.name)
                layers.cells = []

    def _prefix(self, run: Found) -> str:
        """What stands before the names of a run's outputs."""
        return "" if run.path == self.root else f"{run.name}/"


def _is_output(artefact: str, step: str) -> bool:
    """Whether an artefact is what that step left: STEP, STEP.gguf, or a file in STEP/."""
    return artefact == step or artefact.removesuffix(".gguf") == step or artefact.startswith(f"{step}/")
