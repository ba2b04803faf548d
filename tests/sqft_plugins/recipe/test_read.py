"""Several files are one recipe, and paths are those of their file."""

from __future__ import annotations

from pathlib import Path

from helpers_recipe import SPARSE

from sqft_plugins.recipe.read import read_recipe
from sqft_plugins.recipe.run import run_folder
from sqft_plugins.recipe.text import write_yaml
from sqft_plugins.tune.settings import TrainSettings


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
