"""What can be known to be wrong before the first step, beyond the order of the steps: files, data, methods, packages,
and what the model cannot have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint import GridStamp
from sqft_plugins.compress.calibration import calibration_texts
from sqft_plugins.compress.prune import as_pattern
from sqft_plugins.compress.settings import PruneSettings, QuantizeSettings, bits_of, maker_of
from sqft_plugins.errors import SQFTError, within
from sqft_plugins.evaluate.harness import choose_tasks, load_tasks
from sqft_plugins.hardware import parse_dtype
from sqft_plugins.plan.config import has_weights, open_source
from sqft_plugins.plan.settings import PlanSettings
from sqft_plugins.plugins import get_manager
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.sections import Prune, Quantize
from sqft_plugins.recipe.wire import Step
from sqft_plugins.search.methods import check_packages, method_of
from sqft_plugins.tune.arguments import process_count
from sqft_plugins.tune.chat import read_template
from sqft_plugins.tune.prepare import check_training, open_tokenizer, prepare
from sqft_plugins.tune.settings import TrainSettings
from sqft_plugins.tune.targets import check_targets


def check_inputs(label: str, steps: Sequence[Step]) -> None:
    """Everything that needs no model. Raises SQFTError, naming the step."""
    for step in steps:
        if step.verb in VERBS:
            with within(f"{label}, {step.name}"):
                VERBS[step.verb](step)


def check_model(label: str, steps: Sequence[Step], base: Artefact, todo: Sequence[Step]) -> None:
    """What the model cannot have: patterns that match nothing, an N:M or a group that does not divide, an adapter on
    layers of other names, a format that lacks the architecture. Raises SQFTError, naming the step.

    base: the recipe's model, which is there, if only its config.json.
    todo: the steps that are not done, which are looked at.
    """
    names = {step.name for step in todo}
    for step in [step for step in steps if step.name in names]:
        with within(f"{label}, {step.name}"):
            _on_model(step, steps, base)


# --- one function a verb ---


def _prune(step: Step) -> None:
    section = step.section
    get_manager().get("sqft_pruners", section.method, "method")
    for sparsity in (section.sparsity, *section.sparsity_of.values()):
        as_pattern(sparsity)
    calibration_texts(section.calibration, "calibration")


def _quantize(step: Step) -> None:
    calibration_texts(step.section.calibration, "calibration")


def _train(step: Step) -> None:
    section = step.section
    get_manager().get("sqft_tuners", section.tuner, "tuner")
    section.examples("data")
    check_training(section.part(TrainSettings), bool(section.examples("eval_data")), process_count())
    if section.chat_template is not None:
        read_template(section.chat_template)
    if section.text_fraction:
        calibration_texts(section.text, "text")


def _search(step: Step) -> None:
    section = step.section
    check_packages()
    method_of(section, dashes="")
    section.check_starts("starts")
    section.questions("task")


def _eval(step: Step) -> None:
    section = step.section
    if section.dtype is not None:
        parse_dtype(section.dtype)
    calibration_texts(section.text, "text")
    if named := [task for task in choose_tasks(section.tasks, section.data) if isinstance(task, str)]:
        load_tasks(named, section.data_dir, section.shots)


def _export(step: Step) -> None:
    for key, mark in step.section.marks(step.section.model_dump()).items():
        value = step.options.get(key)
        if mark == "file" and value is not None and not Path(value).exists():
            raise SQFTError(f"{key} {value} is not there: check the path")


VERBS: Mapping[str, Callable[[Step], None]] = {
    "prune": _prune, "quantize": _quantize, "train": _train, "search": _search, "eval": _eval, "export": _export,
}  # fmt: skip
"""Verb → its check; of extract and merge, `wire` has seen all."""


# --- against the model ---


def _on_model(step: Step, steps: Sequence[Step], base: Artefact) -> None:
    section = step.section
    if step.verb == "quantize" and maker_of(section.grid) is not None:
        return  # its own quantizer says what it cannot do
    if step.verb in ("prune", "quantize") and base in step.uses["model"].lineage:
        settings = planned(section)
        source = open_source(base.path, section.exclude)
        settings.patterns(source)
        settings.check(source)

    elif step.verb == "train" and base in step.uses["model"].lineage:
        check_targets(section.target_modules, base.path)
        if base.int4 or has_weights(open_source(base.path)):
            _check_examples(section, base.path)

    elif step.verb == "export" and step.makes is not None and step.makes.kind == "file" and not base.int4:
        exporter = get_manager().get("sqft_exporters", section.format, "format")
        model, source = step.uses["model"], open_source(base.path)
        if hasattr(exporter, "estimate") and has_weights(source) and base in model.lineage:
            exporter.estimate(base.path, list(source.modules) if model.int4 else [], grid_of(model, steps))


def planned(section: Prune | Quantize) -> PlanSettings:
    """What `sqft plan` would be asked for this section."""
    if isinstance(section, Prune):
        given = section.part(PruneSettings).keywords()
    else:
        given = section.part(QuantizeSettings).model_dump(exclude={"importance"})
        given["quantize_method"] = given.pop("method")
    del given["calibration"]
    return PlanSettings(**given)


def _check_examples(section: Any, base: Path) -> None:
    """Those that are too long or cannot be learned; pruning and quantizing leave the tokenizer as it is."""
    training = section.part(TrainSettings)
    tokenizer, context = open_tokenizer(base, training)
    data, held_out = section.examples("data"), section.examples("eval_data")
    prepare(data, section.general_text(section), held_out, tokenizer, training, process_count(), context)


def grid_of(model: Artefact, steps: Sequence[Step]) -> GridStamp:
    """The grid that an INT4 model will have: that of the quantize step that it goes back to."""
    sections = {s.name: s.section for s in steps if s.verb == "quantize" and maker_of(s.section.grid) is None}
    made = [sections[artefact.name] for artefact in model.lineage if artefact.name in sections]
    section = next(iter([*made, *sections.values()]), None)
    if section is None:
        return GridStamp()
    return GridStamp(bits=bits_of(section.grid), group_size=section.group_size, symmetric=section.symmetric)
