"""YAML as recipes are written: plain values, and comments that stay."""

from __future__ import annotations

import yaml

from sqft_plugins.recipe.read import read_recipe
from sqft_plugins.recipe.text import parse_yaml, write_yaml


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
