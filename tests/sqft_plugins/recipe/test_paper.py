"""The paper's recipes: each pipeline, model and task fits together, and each pipeline runs on tiny models."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.recipe.artefact import Artefact
from sqft_plugins.recipe.read import read_recipe
from sqft_plugins.recipe.run import run_recipe
from sqft_plugins.recipe.wire import wire
from sqft_plugins.tune.settings import PAPER_TARGETS

PAPER = Path(__file__).parents[3] / "examples" / "paper"
PIPELINES = ["shears", "sqft", "sparsepeft", "qa-sparsepeft"]
MODELS = {"llama-3-8b": "llama", "mistral-7b-v0.3": "mistral", "phi-3-mini": "phi3"}
TASKS = ["gsm8k", "math", "commonsense"]
TINY = [
    "prune.sequences=2", "prune.length=16", "train.rank=8", "train.rank_choices=[8,6,4]", "train.steps=2",
    "train.batch_size=2", "eval.task=word-problems", "eval.limit=2",
]  # fmt: skip
TINY_INT4 = ["quantize.sequences=2", "quantize.length=16", "quantize.group_size=32"]


def files(*names: str) -> list[Path]:
    return [PAPER / f"{name}.yaml" for name in names]


@pytest.mark.parametrize(("pipeline", "model", "task"), list(itertools.product(PIPELINES, MODELS, TASKS)))
def test_pipeline_model_and_task_fit_together_with_the_papers_numbers(pipeline, model, task, tmp_path):
    recipe = read_recipe(files(pipeline, model, task))
    steps = {step.name: step for step in wire(recipe, tmp_path, Artefact("base", "model", tmp_path))}
    train = recipe.sections["train"]
    small, qa = task == "commonsense", pipeline == "qa-sparsepeft"
    assert (train.rank, train.alpha) == ((16, 32) if small else (32, 64))
    assert train.rank_choices == ([16, 12, 8] if small else [32, 28, 24, 20, 16])
    assert (train.learning_rate, train.batch_size) == (1e-4 if small else 3e-4, 16)
    assert train.epochs == (4 if qa and not small else 3)
    assert train.dropout == (0 if qa else 0.1)
    assert train.target_modules == (["qkv_proj"] if model == "phi-3-mini" else PAPER_TARGETS)
    assert steps["train"].uses["model"].name == ("quantize" if pipeline == "sqft" else "prune")
    last = "merge" if "peft" in pipeline else "extract"
    assert steps["eval"].targets[-1][0].name == last
    assert (last == "merge") == steps["train"].makes.masked


FAST = {("shears", "phi-3-mini"), ("qa-sparsepeft", "mistral-7b-v0.3")}
CASES = [
    pytest.param(pipeline, model, marks=[] if (pipeline, model) in FAST else pytest.mark.slow)
    for pipeline, model in itertools.product(PIPELINES, MODELS)
]


@pytest.mark.parametrize(("pipeline", "model"), CASES)
def test_every_step_runs_on_a_tiny_model_of_the_family(
    pipeline, model, tiny_model, tiny_tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setenv("SQFT_EVAL_CACHE", str(tmp_path / "answers"))
    tiny_model(MODELS[model]).save_pretrained(tmp_path / "model")
    tiny_tokenizer("byte-fallback").save_pretrained(tmp_path / "model")
    (tmp_path / "d.jsonl").write_text('{"prompt": "Question: 1 + 1?\\nAnswer:", "completion": " 2"}\n' * 4)
    settings = [f"model={tmp_path}/model", f"train.data={tmp_path}/d.jsonl", *TINY]
    settings += TINY_INT4 if pipeline in ("sqft", "qa-sparsepeft") else []
    report = run_recipe(read_recipe(files(pipeline, model, "gsm8k"), settings), tmp_path / "out")
    rows = {row["name"]: row for row in report["artefacts"]}
    result = rows["merge" if "peft" in pipeline else "extract"]
    assert result["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert result["scores"]["word-problems"]
    if "peft" in pipeline:
        assert result["zeros_kept"] == 1
        assert (ModelFolder(tmp_path / "out/merge").grid is not None) == (pipeline == "qa-sparsepeft")
