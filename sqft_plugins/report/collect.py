"""`sqft report` up to the page: everything that a folder holds, as one `Report`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.inspect import inspect_path
from sqft_plugins.inspect.plot import block_and_kind
from sqft_plugins.progress import say
from sqft_plugins.report import read
from sqft_plugins.report.artefacts import of_adapter, of_demo, of_model
from sqft_plugins.report.data import Artefact, Layers, Ranks, Report
from sqft_plugins.report.find import DEMO, RECIPE, Found, find
from sqft_plugins.report.summary import summary

PACKAGES = ("sqft-plugins", "torch", "transformers", "peft", "compressed-tensors", "optuna", "lm-eval", "vllm")


class DemoRow(BaseModel):
    name: str
    accuracy: float
    accuracy_stderr: float
    perplexity: float
    zeros_kept: float | None = None
    bits_per_weight: float | None = None
    bytes: int | None = None
    seconds: float | None = None


class DemoRecord(BaseModel):
    """What is read of a demo's report.json."""

    task: str
    stages: list[DemoRow]
    settings: dict[str, Any] = Field(default_factory=dict)


def collect(path: str | Path, *, title: str | None = None, quick: bool = False) -> Report:
    """Everything that `path` holds: a run of `sqft demo` or of a recipe, a model, an adapter, a search, an evaluation,
    or a folder with several of these.

    quick: read no weights, so no map of zeros. What is not recognised or damaged is named in `left_out`. Raises
    CheckpointError where nothing is there to report.
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
    report.summary = summary(report)
    return report


class Builder:
    """Fills a report, one finding after the other; one that is damaged is left out, named, and said."""

    def __init__(self, report: Report, root: Path, quick: bool):
        self.report, self.root, self.quick, self.read = report, root, quick, 0
        self.runs: list[Found] = []
        self.evaluations: list[tuple[str, dict[str, Any]]] = []
        self.measured: dict[str, dict[str, Any]] = {}

    def take(self, found: Found) -> None:
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
        self.report.left_out[name] = why
        say(f"left out: {name}: {why}")

    def run(self, found: Found) -> None:
        """The steps of a demo or a recipe; its outputs are found by themselves."""
        prefix = "" if found.path == self.root else f"{found.name}/"
        steps = read.read_steps(found.path)
        self.report.steps += [read.step(f"{prefix}{name}", record) for name, record in steps.items()]
        for name, record in steps.items():
            scored = read.evaluations(record["result"], name)
            self.evaluations += [(f"{prefix}{label}", one) for label, one in scored]
            measured = record["result"].get("measured")
            self.measured[f"{prefix}{name}"] = measured if isinstance(measured, dict) else {}
        recipe = found.path / RECIPE
        if recipe.is_file():
            text = recipe.read_text(errors="replace")
            self.report.recipe = text if self.report.recipe is None else f"{self.report.recipe}\n---\n{text}"
        self.runs.append(found)

    def model(self, found: Found) -> None:
        if self.quick:
            self.report.artefacts.append(_unread(found))
            return
        artefact, layers = of_model(found.name, found.path, inspect_path(found.path))
        self.report.artefacts.append(artefact)
        self.report.layers.append(layers)

    def adapter(self, found: Found) -> None:
        self.report.artefacts.append(of_adapter(found.name, found.path, inspect_path(found.path)))
        training = read.read_training(found.path, found.name)
        if training is not None:
            self.report.trainings.append(training)

    def search(self, found: Found) -> None:
        search = read.read_search(found.path, found.name)
        self.report.searches.append(search)
        ranks = search.result["chosen"].get("ranks")
        if isinstance(ranks, Mapping) and ranks and all(isinstance(rank, int) for rank in ranks.values()):
            cells = [(*block_and_kind(module), rank) for module, rank in ranks.items()]
            self.report.ranks.append(Ranks(name=found.name, cells=cells))

    def evaluation(self, found: Found) -> None:
        self.evaluations += read.evaluations(read.read_json(found.path), found.name.removesuffix(".json"))

    def finish(self) -> None:
        """Joins what was scored to what was found."""
        for found in self.runs:
            try:
                self._demo(found)
            except SQFTError as error:
                self.leave(f"{found.name}/{DEMO}", str(error))
        self._join_steps()
        for number, (name, one) in enumerate(self.evaluations):
            if all(one != earlier for _, earlier in self.evaluations[:number]):  # a recipe keeps it in a file, too
                self._score(name, one)
        place = {row.name: (row.kind == "GGUF", index) for index, row in enumerate(self.report.artefacts)}
        self.report.layers.sort(key=lambda layers: place[layers.name])  # a model has a mask, its GGUF has none
        self._merge_equal_maps()
        self.report.environment = environment()

    def _demo(self, run: Found) -> None:
        file = run.path / DEMO
        if not file.is_file():
            return
        record = read.checked(DemoRecord, read.read_json(file), file)
        prefix = "" if run.path == self.root else f"{run.name}/"
        known = {artefact.name: artefact for artefact in self.report.artefacts}
        rows = [of_demo(row.model_dump(), record.task, known, prefix) for row in record.stages]
        taken = {row.path: row.name for row in rows if row.path}
        self._rename({one.name: taken[one.path] for one in known.values() if one.path in taken})
        self.report.artefacts = rows + [one for one in self.report.artefacts if one.path not in taken]
        self.report.settings |= {f"{prefix}{key}": value for key, value in record.settings.items() if value is not None}
        if not prefix:
            self.report.command = demo_command(record.settings, run.path)

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
            kept, bits = (self.measured.get(name, {}).get(key) for key in ("zeros_kept", "bits_per_weight"))
            if artefact.zeros_kept is None and isinstance(kept, float):
                artefact.zeros_kept = kept
            if artefact.bits_per_weight is None and artefact.kind != "adapter" and isinstance(bits, float):
                artefact.bits_per_weight = bits
        if not any(artefact.scores for artefact in self.report.artefacts):  # the demo's rows have their order
            self.report.artefacts.sort(key=lambda artefact: made[artefact.name])

    def _rename(self, names: Mapping[str, str]) -> None:
        """The demo's names of its outputs, everywhere."""
        for layers in self.report.layers:
            layers.name = names.get(layers.name, layers.name)

    def _score(self, name: str, report: Mapping[str, Any]) -> None:
        """To the artefact that was scored; to a new row where it is not in this folder."""
        model = report.get("model") or report.get("model_name")  # the second: lm-evaluation-harness
        asked = report.get("adapter") or model
        rank = report.get("rank")
        target = self._named(str(asked)) if asked else None
        if target is None:
            what = f"{model}" if asked else ""
            target = Artefact(name=name, kind="evaluation", what=what)
            place = sum(
                row.kind == "evaluation" for row in self.report.artefacts
            )  # first: mostly what a run began with
            self.report.artefacts.insert(place, target)
        elif report.get("adapter") and any(target.scores):  # the same adapter at another rank
            target = target.model_copy(update={"name": f"{target.name} at rank {rank}", "scores": []})
            self.report.artefacts.append(target)
        target.scores += read.scores(report)

    def _named(self, path: str) -> Artefact | None:
        """The artefact at that path. A run that was moved keeps the paths of its old place: then its name must do."""
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


def _is_output(artefact: str, step: str) -> bool:
    """Whether an artefact is what that step left: STEP, STEP.gguf, or a file in STEP/."""
    return artefact == step or artefact.removesuffix(".gguf") == step or artefact.startswith(f"{step}/")


def environment() -> dict[str, str]:
    """Versions, processor, cores, memory of the machine that this runs on."""
    from sqft_plugins.cli.doctor import machine_checks

    found = {check.name: check.found for check in machine_checks() if check.name != "C++ compiler"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def demo_command(settings: Mapping[str, Any], out: Path) -> str | None:
    """The `sqft demo` that these settings are of; None where its command line cannot say them."""
    from sqft_plugins.cli.demo import command
    from sqft_plugins.demo.run import DemoSettings

    options = {parameter.name: parameter.opts[0] for parameter in command.params if parameter.name}
    defaults = DemoSettings.make({}).model_dump()
    words = ["sqft", "demo", "--out", str(out)]
    for key, value in settings.items():
        if key in defaults and value != defaults[key]:
            if key not in options:
                return None
            words += [options[key], str(value)]
    return shlex.join(words)


def _unread(found: Found) -> Artefact:
    """What a model is without reading its weights."""
    if found.kind == "file":
        return Artefact(name=found.name, kind="GGUF", path=str(found.path), bytes=found.path.stat().st_size)
    folder = ModelFolder(found.path)
    stamp = folder.stamp
    return Artefact(
        name=found.name,
        kind="model",
        what=" → ".join(stamp.pipeline) if stamp else "not stamped",
        path=str(found.path),
        bytes=folder.weight_bytes,
    )


def as_json(report: Report) -> dict[str, Any]:
    """What `--json` prints: a number that is not finite is null, for JSON has none."""
    return _plain(report.model_dump())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
