"""Which step works on what, and what is refused before a file is touched."""

from __future__ import annotations

import pytest
from helpers_recipe import SPARSE

from sqft_plugins.errors import SQFTError
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.read import read_recipe
from sqft_plugins.recipe.wire import wire

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
        (SPARSE + "quantize-again: {}\n", ["quantize-again.model=quantize"], "quantize has codes already"),
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
        (QA, ["train.quantization_aware=false"], "train: grid='quantize' needs quantization_aware=True"),
        (QA, ["quantize=false", "train.grid=null"], "train: quantization_aware over the float prune needs"),
        (QA, ["train.dropout=0.1"], "train: dropout=0.1 cannot be used with quantization_aware"),
        (QA, ["train.quantization_aware=false", "train.grid=null"], "train: quantize is quantized, where a masked"),
        (DENSE + "merge:\n", [], "merge: extract (dense) is over the quantized quantize, where a merge would lose it"),
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


def test_a_quantizer_of_another_format_makes_a_file_that_is_trained_over_and_merged_into(wired, tmp_path):
    steps = wired("model: m\nquantize: {grid: q4_0}\ntrain: {data: d.jsonl, model: quantize}\nmerge:\neval:\n")
    assert [steps[name].makes.kind for name in ("quantize", "train", "merge")] == ["file", "adapter", "file"]
    assert steps["quantize"].target == tmp_path / "out" / "quantize" / "model.gguf"
    assert steps["merge"].target == tmp_path / "out" / "merge" / "model.gguf"
    assert uses(steps["merge"]) == {"model": "quantize", "adapter": "train"}
    assert (steps["train"].makes.quantization_aware, steps["train"].makes.masked) == (True, False)
    assert [target.name for target, _ in steps["eval"].targets] == ["merge"]


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ("grid: q4_k_m", "quantize: prune is pruned, and types of Q4_K_M cannot hold a 0: use --grid q3_k_s, q4_0"),
        ("grid: q4_0", "quantize: prune is pruned, and with an importance matrix llama.cpp takes Q4_1"),
        ("grid: q8_0, method: llama.cpp", "quantize: prune is pruned, and llama.cpp's quantizer keeps no zeros"),
    ],
)  # fmt: skip
def test_a_format_that_would_lose_the_zeros_is_refused_before_they_are_made(wired, quantize, message):
    with pytest.raises(SQFTError) as error:
        wired(f"model: m\nprune: {{sparsity: 0.5}}\nquantize: {{{quantize}}}\n")
    assert message in str(error.value)
    assert "prune" in wired("model: m\nprune: {sparsity: 0.5}\nquantize: {grid: q8_0}\n")


def test_an_exported_file_is_trained_over_by_its_name_alone(wired):
    text = "model: m\nquantize:\nexport: {format: gguf}\ntrain: {data: d.jsonl, quantization_aware: true}\n"
    assert uses(wired(text)["train"]) == {"model": "quantize"}
    assert uses(wired(text, "train.model=export")["train"]) == {"model": "export"}
