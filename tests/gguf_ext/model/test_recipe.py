"""A recipe over a file: trained, merged and measured as the verbs do it.

pytest tests/gguf_ext/model/test_recipe.py
"""

from __future__ import annotations

import json

import pytest
from helpers_quantize import quantized

from sqft_plugins.errors import SQFTError
from sqft_plugins.recipe import plan_recipe, read_recipe, run_recipe
from sqft_plugins.recipe.run import base_of


@pytest.fixture
def recipe(llama, tmp_path):
    quantized(llama, tmp_path / "m.gguf", "Q4_0")
    rows = [{"prompt": f"Question: {n}\nAnswer:", "completion": f" {n + 1}"} for n in range(8)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "r.yaml"
    file.write_text(
        "model: m.gguf\n"
        "train: {data: d.jsonl, steps: 2, rank: 4, batch_size: 2, target_modules: [q_proj]}\n"
        "merge:\n"
        "eval: {data: d.jsonl, model: [train, merge], limit: 2}\n"
    )
    return file


def test_a_recipe_over_a_file(recipe, tmp_path):
    report = run_recipe(read_recipe([recipe]), tmp_path / "run")
    rows = {row["name"]: row for row in report["artefacts"]}
    assert (tmp_path / "run" / "merge" / "model.gguf").stat().st_size == pytest.approx(
        (tmp_path / "m.gguf").stat().st_size, abs=2000
    )
    assert rows["merge"]["bits_per_weight"] == rows["base"]["bits_per_weight"] == 4.5
    assert rows["train"]["scores"].keys() == rows["merge"]["scores"].keys() != set()

    again = run_recipe(read_recipe([recipe]), tmp_path / "run")
    assert [step["reused"] for step in again["steps"]] == [True, True, True]


def test_what_needs_a_folder_is_refused_before_the_first_step(recipe, tmp_path):
    recipe.write_text("model: m.gguf\nprune: {sparsity: 0.5}\n")
    with pytest.raises(SQFTError, match="prune: no step above makes a model"):
        run_recipe(read_recipe([recipe]), tmp_path / "run")


def test_a_name_of_the_hub_is_a_file_before_it_is_fetched(recipe, tmp_path):
    recipe.write_text("model: org/model-GGUF:Q4_K_M\n" + recipe.read_text().partition("\n")[2])
    assert base_of(read_recipe([recipe]), tmp_path / "run").kind == "file"
    assert [row["done"] for row in plan_recipe(read_recipe([recipe]), tmp_path / "run")["steps"]] == [False] * 3
