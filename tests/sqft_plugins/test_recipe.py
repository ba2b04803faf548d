"""Recipes: how they are read, which step works on what, and what is refused before a file is touched."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click
import pytest
import yaml

from sqft_plugins.errors import SQFTError
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.read import read_recipe
from sqft_plugins.recipe.run import run_folder
from sqft_plugins.recipe.schema import recipe_schema
from sqft_plugins.recipe.sections import SECTIONS
from sqft_plugins.recipe.text import parse_yaml, write_yaml
from sqft_plugins.recipe.wire import wire
from sqft_plugins.tune.settings import TrainSettings

EXAMPLES = Path(__file__).parents[2] / "examples"
SPARSE = """
model: m
prune: {sparsity: 0.5}
train: {data: d.jsonl, rank_choices: [32, 24]}
search: {data: h.jsonl}
extract:
merge: {adapter: train}
quantize:
eval: {model: [base, prune, train, extract, merge, quantize]}
export:
"""
QA = """
model: m
prune: {sparsity: 0.5}
quantize:
train: {data: d.jsonl, rank_choices: [32, 24], quantization_aware: true, grid: quantize}
merge:
export-plane: {format: plane}
eval:
"""
DENSE = """
model: m
prune: {sparsity: 0.5}
quantize:
train: {data: d.jsonl, rank_choices: [32, 24], sparse: false}
extract:
export: {format: gguf}
export-lora: {format: gguf-lora}
eval:
"""


@pytest.fixture
def wired(tmp_path):
    """(text, *settings) → step name → what it works on, without what an adapter brings along."""

    def go(text: str, *settings: str) -> dict:
        file = tmp_path / "r.yaml"
        file.write_text(text)
        base = Artefact("base", "model", tmp_path / "m")
        return {step.name: step for step in wire(read_recipe([file], settings), tmp_path / "out", base)}

    return go


def uses(step) -> dict[str, str]:
    return {role: artefact.name for role, artefact in step.uses.items()}


def test_plain_values_are_those_of_yaml_1_2_and_survive_writing():
    text = "{a: 2:4, b: no, c: 3e-4, d: 010, e: 12, f: true, g: ~, h: .5, i: 1_000, j: '8'}"
    value = parse_yaml(text)
    assert value == {
        "a": "2:4", "b": "no", "c": 3e-4, "d": 10, "e": 12, "f": True, "g": None, "h": 0.5, "i": "1_000", "j": "8"
    }  # fmt: skip
    assert parse_yaml(write_yaml(value)) == value
    assert yaml.safe_load(write_yaml(value)) == value  # by YAML 1.1, too: what it would take otherwise is quoted


COMMENTED = """\
# sqft run this.yaml
model: m  # the base
prune:
  sparsity: 0.5  # half
  exclude: [v_proj]  # as in the paper
# and then
train:
  data: d.jsonl
  learning_rate: 3e-4  # the paper's
quantize:  # with defaults
"""
WRITTEN = """\
# sqft run this.yaml
model: m  # the base
prune:
  sparsity: 0.4  # half
  exclude: [v_proj]  # as in the paper
# and then
train:
  data: FOLDER/d.jsonl
  learning_rate: 3e-4  # the paper's
  steps: 7
quantize:  # with defaults
merge: # of the second file
  rank: max
out: FOLDER/run
"""


def test_the_comments_of_a_recipe_stay_when_it_is_written(tmp_path):
    (tmp_path / "a.yaml").write_text(COMMENTED)
    (tmp_path / "b.yaml").write_text("merge: # of the second file\n  rank: max\n")
    recipe = read_recipe([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["prune.sparsity=0.4", "train.steps=7"])
    text = recipe.text(tmp_path / "run")
    assert text == WRITTEN.replace("FOLDER", str(tmp_path))
    (tmp_path / "again.yaml").write_text(text)
    assert read_recipe([tmp_path / "again.yaml"]).values() == recipe.values()
    shorter = read_recipe([tmp_path / "a.yaml"], ["quantize=false", "train=false"]).text(tmp_path / "run")
    assert list(parse_yaml(shorter)) == ["model", "prune", "out"]


def test_a_step_works_on_the_last_thing_above_that_it_can_work_on(wired):
    steps = wired(SPARSE)
    assert {name: uses(step) for name, step in steps.items()} == {
        "prune": {"model": "base"},
        "train": {"model": "prune"},
        "search": {"model": "prune", "adapter": "train"},
        "extract": {"adapter": "train"},
        "merge": {"model": "prune", "adapter": "train"},
        "quantize": {"model": "merge"},
        "eval": {},
        "export": {"model": "quantize"},
    }
    assert steps["merge"].rank.search.name == "search"
    assert [rank and (rank.search.name if rank.search else rank.rank) for _, rank in steps["eval"].targets] == [
        None, None, "search", "max", None, None
    ]  # fmt: skip


def test_a_quantization_aware_adapter_is_over_the_float_model_that_its_grid_was_made_from(wired):
    steps = wired(QA)
    assert uses(steps["train"]) == {"model": "prune", "grid": "quantize"}
    assert uses(steps["merge"]) == {"model": "prune", "adapter": "train", "grid": "quantize"}
    assert uses(steps["export-plane"]) == {"adapter": "train", "model": "quantize", "base": "prune"}
    assert steps["merge"].makes.int4
    assert [target.name for target, _ in steps["eval"].targets] == ["merge"]
    assert uses(wired(QA, "train.grid=null")["train"]) == {"model": "quantize"}


def test_a_dense_adapter_stays_beside_its_int4_base(wired):
    steps = wired(DENSE)
    assert uses(steps["train"]) == {"model": "quantize"}
    assert uses(steps["export-lora"]) == {"adapter": "extract", "base": "quantize"}
    assert [(target.name, rank.rank) for target, rank in steps["eval"].targets if rank] == []
    assert [target.name for target, _ in steps["eval"].targets] == ["export"]


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (SPARSE, ["train.stepz=3"], "train: Train has no key 'stepz': did you mean 'steps'?"),
        (SPARSE, ["train.steps=x"], "train: steps='x'"),
        (SPARSE, ["trian.steps=3"], "the recipe has no step 'trian': did you mean 'train'?"),
        (SPARSE, ["train.steps"], "is no KEY=VALUE"),
        (SPARSE, ["train=3"], "train is 3"),
        (SPARSE, ["train.steps=3", "train.epochs=2", "train.steps=4", "train.rank=7"], "rank_choices"),
        (SPARSE, ["train=false"], "search: no step above makes an adapter: add train above"),
        (SPARSE, ["train.rank_choices=null"], "search: train has a fixed rank"),
        (SPARSE, ["merge.rank=23"], "merge: rank=23 is outside the search space"),
        (SPARSE, ["train.rank_choices=null", "search=false", "extract=false", "merge.rank=24"], "merge: rank=24 is"),
        (SPARSE, ["merge.rank=23.json"], "merge: rank=23 is outside the search space"),
        (SPARSE, ["merge.rank=serach"], "merge: rank='serach' is not a rank"),
        (SPARSE, ["merge.model=mrge"], "merge: 'mrge' is neither a step above nor a path"),
        (SPARSE, ["merge.model=quantize"], "merge: 'quantize' is below"),
        (SPARSE, ["merge.adapter=prune"], "merge: prune is a model, an adapter is needed"),
        (SPARSE, ["search.task=x", "search.data=null", "search.task=null"], "search: give the questions"),
        (SPARSE, ["search.against=latency"], "search: against: latency is for dense adapters"),
        (SPARSE, ["train.sparse=false"], "merge: train (dense) would fill the zeros of prune"),
        (SPARSE, ["eval.model=search"], "eval: search is a search, which has no score"),
        (SPARSE, ["eval.model=prune", "eval.rank=max"], "eval: rank='max' is for adapters"),
        (SPARSE, ["export.float_typ=f16"], "export: Export has no key 'float_typ': did you mean 'float_type'?"),
        (SPARSE, ["export.format=ggml"], "export: format 'ggml' is unknown"),
        (SPARSE + "quantize-again: {}\n", ["quantize-again.model=quantize"], "quantize is INT4 already"),
        (SPARSE + "compress: {}\n", [], "'compress' is no step"),
        (SPARSE + "prune: {sparsity: 0.3}\n", [], "line 11 is no YAML (found duplicate key \"prune\")"),
        (SPARSE + "x: [\n", [], "is no YAML"),
        ("model: {{ model }}\n", [], "line 1 is no YAML (found unhashable key)"),
        ("- prune\n", [], "is no mapping"),
        ("prune: {sparsity: 0.5}\n", [], "has no model"),
        ("model: m\n", [], "has no step"),
        ("model: m\nprune:\n", [], "prune: sparsity="),
        ("model: m\nmerge:\n", [], "merge: no step above makes an adapter"),
        (QA, ["train.grid=prune"], "train: grid prune is float"),
        (QA, ["train.quantization_aware=false"], "train: grid quantize is for a quantization-aware adapter"),
        (QA, ["quantize=false", "train.grid=null"], "train: quantization_aware over the float prune needs"),
        (QA, ["train.dropout=0.1"], "train: dropout=0.1 cannot be used with quantization_aware"),
        (QA, ["train.quantization_aware=false", "train.grid=null"], "train: quantize is INT4, where a masked adapter"),
        (DENSE + "merge:\n", [], "merge: extract (dense) is over the INT4 quantize, where a merge would lose it"),
        (DENSE, ["extract=false"], "export-lora: train is elastic"),
        (DENSE + "export-plane: {format: plane}\n", [], "export-plane: extract is not quantization-aware"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_by_name(wired, text, settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "23.json").write_text('{"q_proj": 23}')
    with pytest.raises(SQFTError) as error:
        wired(text, *settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_later_files_add_to_earlier_ones_and_paths_are_those_of_their_file(tmp_path, monkeypatch):
    for name, text in {
        "one/a.yaml": SPARSE,
        "two/b.yaml": "model: ../models/x\ntrain: {epochs: 3, data: t.jsonl}\neval: {task: [arc-easy, own.yaml]}\n",
        "models/x/config.json": "{}",
        "two/own.yaml": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    files = [tmp_path / "one/a.yaml", tmp_path / "two/b.yaml"]
    recipe = read_recipe(files, ["search.data=s.jsonl", "extract=false"])
    assert Path(recipe.model).resolve() == tmp_path / "models/x"
    assert list(recipe.sections) == ["prune", "train", "search", "merge", "quantize", "eval", "export"]
    train, search = recipe.sections["train"], recipe.sections["search"]
    assert (train.epochs, train.rank_choices, Path(train.data)) == (3, [32, 24], tmp_path / "two/t.jsonl")
    assert Path(search.data) == tmp_path / "here/s.jsonl"
    assert recipe.sections["eval"].tasks == ["arc-easy", str(tmp_path / "two/own.yaml")]
    shorter = read_recipe(files, ["train.steps=5"]).sections["train"].part(TrainSettings)  # in place of the epochs
    assert (shorter.steps, shorter.epochs) == (5, None)
    (tmp_path / "again.yaml").write_text(write_yaml(recipe.values()))
    again = read_recipe([tmp_path / "again.yaml"])
    assert again.values() == recipe.values()
    spaced = tmp_path / "my recipes" / "first one.yaml"
    spaced.parent.mkdir()
    spaced.write_text(SPARSE)
    assert run_folder(read_recipe([spaced, files[1]]), None) == tmp_path / "here/first one"


NOT_IN_RECIPES = {
    "out", "overwrite", "as_json", "study", "worker", "server", "served", "no_cache", "samples", "adapter"
}  # fmt: skip
"""Options that the recipe sets itself, or that make no sense in one. --adapter of eval: an adapter is a target."""


@pytest.mark.parametrize("verb", [verb for verb in SECTIONS if verb != "export"])
def test_a_section_has_the_options_of_its_verb_and_their_defaults(verb):
    command = importlib.import_module(f"sqft_plugins.cli.{verb}").command
    options = {p.name: p for p in command.params if isinstance(p, click.Option) and p.name not in NOT_IN_RECIPES}
    fields = SECTIONS[verb].model_fields
    arguments = {p.name for p in command.params if isinstance(p, click.Argument)}
    assert options.keys() | arguments == fields.keys() | ({"model"} & arguments)
    given = [f"--{name}={0.5 if name == 'sparsity' else 'x'}" for name, option in options.items() if option.required]
    out = ["--out", "x"] if any(p.name == "out" for p in command.params) else []
    bare = command.make_context(verb, [*given, *out, *("x" for _ in arguments)])
    for name, option in options.items():
        if option.required or name == "rank":  # a search above decides the rank, else the verb's default
            continue
        ours, theirs = fields[name].get_default(call_default_factory=True), bare.params[name]
        if name in ("symmetric", "sparse"):  # --asymmetric, --dense
            theirs = not theirs
        if isinstance(ours, list | dict):
            theirs = type(ours)(theirs) if theirs else ours if name == "target_modules" else type(ours)()
        assert ours == theirs or (verb, name, theirs) == ("eval", "dtype", None), name


def test_the_schema_describes_every_option_and_knows_every_example():
    schema = recipe_schema()
    for verb, section in schema["$defs"].items():
        properties = section["anyOf"][0]["properties"]
        assert all(value.get("description") for value in properties.values()), verb
        assert "--" not in json.dumps(properties), verb
    files = [*EXAMPLES.glob("*.yaml"), *(EXAMPLES / "paper").glob("*.yaml")]
    assert len(files) >= 13
    for file in files:
        for name, values in parse_yaml(file.read_text()).items():
            if name not in ("model", "out"):
                properties = schema["$defs"][name.partition("-")[0]]["anyOf"][0]["properties"]
                assert (values or {}).keys() <= properties.keys(), (file, name)
