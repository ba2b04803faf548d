"""`sqft run` as a function: checks, then one step after the other; what is finished and unchanged stays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sqft_plugins.adapter import is_adapter
from sqft_plugins.checkpoint import write_file
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.demo.base import prepare_base
from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.identity import IGNORED, content_hash, file_hash, files_of, hash_of_files
from sqft_plugins.model_files import reader_of
from sqft_plugins.recipe.artefact import Artefact, from_path
from sqft_plugins.recipe.inputs import check_inputs, check_model
from sqft_plugins.recipe.make import Maker, output_of
from sqft_plugins.recipe.read import BASE, GEMMA, Recipe
from sqft_plugins.recipe.wire import Step, wire
from sqft_plugins.stages import Stages
from sqft_plugins.variables import DATA_DIR

REFERENCES = ("model", "adapter", "grid", "rank")
"""Fields of a section that `Step.uses`, `targets` and `rank` stand for."""


def run_recipe(
    recipe: Recipe, out: str | Path | None = None, *, until: str | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Makes the steps that are not done yet, each as `OUT/STEP` → recipe, out, steps (name, verb, reused, seconds,
    result) and artefacts (see `artefacts`).

    out: the run folder (default: the recipe's `out`, else its name without .yaml, in the current folder); `stages/` in
        it holds the record, recipe.yaml the recipe as it was run.
    until: the last step to make.
    overwrite: take a folder that is no run folder.

    Raises SQFTError before the first step for whatever can be known to be wrong by then.
    """
    # everything that can be refused
    out = run_folder(recipe, out)
    steps = steps_until(wire(recipe, out, base_of(recipe, out)), until)  # what is wrong with these needs no model
    stages = Stages(out, overwrite, what="run")
    todo = todo_of(recipe, steps, stages)
    check_inputs(recipe.name, todo)
    base = base_of(recipe, out, fetch=True)
    steps = steps_until(wire(recipe, out, base), until)  # a model from the hub may have turned out to be INT4
    ready = base.kind == "file" or (base.path / "config.json").is_file()
    if ready:
        check_model(recipe.name, steps, base, todo)

    # work
    with stages.alone():
        if recipe.model == GEMMA:
            stages.run(BASE, lambda: _prepare(base.path), **_base_inputs(recipe), output=f"{BASE}/config.json")
        else:
            stages.run(BASE, lambda: {"model": recipe.model}, **_base_inputs(recipe))
        if not ready:
            check_model(recipe.name, steps, base, todo)

        with write_file(out / "recipe.yaml", overwrite=True) as file:
            file.write_text(recipe.text(out), encoding="utf-8")
        results: dict[str, dict[str, Any]] = {}
        maker = Maker(out, stages, results)
        for number, step in enumerate(steps, 1):
            results[step.name] = stages.run(
                step.name,
                partial(maker.make, step),
                **_asked(step),
                place=f"{number}/{len(steps)} ",
            )

    # report
    return {
        "recipe": recipe.name,
        "out": str(out),
        "steps": [
            {"name": step.name, "verb": step.verb, "reused": step.name in stages.reused, "result": results[step.name]}
            for step in steps
        ],
        "artefacts": artefacts(base, steps, results),
    }


def run_folder(recipe: Recipe, out: str | Path | None) -> Path:
    chosen = Path(out) if out is not None else recipe.out
    return (chosen or Path.cwd() / recipe.folder).resolve()


def base_of(recipe: Recipe, out: Path, fetch: bool = False) -> Artefact:
    """The recipe's model: a folder here; a file that a plug-in reads; GEMMA, which will be OUT/base; or a name on the
    hub, which is believed to be a float model until it is fetched. Raises SQFTError."""
    if recipe.model == GEMMA:
        return Artefact(BASE, "model", out / BASE)
    reader = reader_of(recipe.model)
    if reader is not None:
        here = fetch or Path(recipe.model).exists()
        path = reader.locate(recipe.model) if here else Path(recipe.model)
        return Artefact(BASE, "file", path, int4=True)
    if Path(recipe.model).is_dir() or fetch:
        return replace(from_path(local_folder(recipe.model)), name=BASE, step=True)
    return Artefact(BASE, "model", Path(recipe.model))


def steps_until(steps: list[Step], until: str | None) -> list[Step]:
    """Those up to `until`. Raises SQFTError for a step that is not there."""
    names = [step.name for step in steps]
    if until is not None and until not in names:
        raise SQFTError(f"--until {until!r} is no step: {nearest(until, names)}")
    return steps if until is None else steps[: names.index(until) + 1]


def todo_of(recipe: Recipe, steps: Sequence[Step], stages: Stages) -> list[Step]:
    """The steps that are not finished, or not with these inputs."""
    stages.plan(BASE, **_base_inputs(recipe))
    return [step for step in steps if stages.plan(step.name, **_asked(step)) is None]


LATER: dict[str, tuple[tuple[str, Any], ...]] = {
    "train": (("rounding", None), ("tokenizer", None), ("init_adapter", None), ("base_weights", "float")),
    "quantize": (("grid", "int4"), ("importance", True)),
}
"""Options that the first release did not have, at the values by which a step is what that release made of it."""


def inputs_of(step: Step) -> dict[str, Any]:
    """What the result of a step depends on, beside the steps before it: options, the content of files, what it works
    on. Where files lie does not matter."""
    section = step.section
    values = section.model_dump(exclude=set(REFERENCES))
    marks = section.marks(values)
    found = {
        key: _content(value) if "file" in marks.get(key, "") else value
        for key, value in values.items()
        if marks.get(key) != "place" and (key, value) not in LATER.get(section.verb, ())
    }
    if section.verb == "eval" and section.data_dir is None and os.environ.get(DATA_DIR):
        found["data_dir"] = os.environ[DATA_DIR]
    uses = {role: artefact.name if artefact.step else _identity(artefact.path) for role, artefact in step.uses.items()}
    targets = [artefact.name if artefact.step else _identity(artefact.path) for artefact, _ in step.targets]
    ranks = [rank and (rank.search.name if rank.search else rank.rank) for rank in step.ranks]
    return {"verb": step.verb, "options": found, "uses": uses, "targets": targets, "ranks": ranks}


def artefacts(base: Artefact, steps: Sequence[Step], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for the base and for each model, adapter and file: name, kind, sparsity, zeros_kept, bits_per_weight,
    bytes, and scores (task → its numbers, as `sqft eval` gives them)."""
    from sqft_plugins.recipe.measured import folder_numbers

    rows = {BASE: {"name": BASE, "kind": "model", **folder_numbers(base.path), "scores": {}}}
    for step in steps:
        if step.makes is not None and "measured" in results[step.name]:
            measured = results[step.name]["measured"]
            rows[step.name] = {"name": step.name, "kind": step.makes.kind, **measured, "scores": {}}

    for step in steps:
        for name, report in results[step.name].get("scores", {}).items():
            row = rows.setdefault(name, {"name": name, "kind": "model", "scores": {}})
            row["scores"].update(report["results"])
    return list(rows.values())


# --- inside ---


def _asked(step: Step) -> dict[str, Any]:
    after = [artefact.name for artefact in step.works_on if artefact.step]
    return {"after": after, "settings": inputs_of(step), "output": output_of(step)}


def _prepare(path: Path) -> dict[str, Any]:
    prepare_base(path, overwrite=True)
    return {}


def _base_inputs(recipe: Recipe) -> dict[str, Any]:
    path = Path(recipe.model)
    return {"settings": {"content": _identity(path)} if path.exists() else {"model": recipe.model}}


def _content(value: Any) -> Any:
    """The hash of a file or a folder; anything else as it is."""
    if isinstance(value, list):
        return [_content(one) for one in value]
    path = Path(value) if isinstance(value, str) else None
    if path is not None and path.is_file():
        return file_hash(path)
    return hash_of_files(files_of(path), path) if path is not None and path.is_dir() else value


def _identity(path: Path) -> str:
    """The hash of a model or adapter; value planes, which a step may write into an adapter's folder, are not of it."""
    if not is_adapter(path):
        return content_hash(path)
    own = [file for file in files_of(path) if file.relative_to(path).parts[0] != "planes"]
    return hash_of_files([file for file in own if file.suffix not in IGNORED], path)
