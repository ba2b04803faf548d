"""Every verb with a `.gguf` file for its model: it takes the file, or refuses it in one line by name.

pytest tests/sqft_plugins/cli/test_model_files.py
"""

from __future__ import annotations

import json

import pytest

from sqft_plugins.cli import VERBS, main

REFUSED = {
    "prune": ["--out", "OUT"],
    "recover": ["--dense", "FOLDER", "--out", "OUT"],
    "quantize": ["--out", "OUT"],
    "plan": [],
    "compact": ["--out", "OUT"],
    "export": ["--out", "OUT"],
    "extract": ["--out", "OUT"],
}
"""Verbs that need a folder → what they need beside it."""
TAKEN = {"train", "merge", "search", "eval", "inspect", "report"}
WITHOUT = {"run", "demo", "doctor", "plugins", "schema"}
"""Those that take no model."""


@pytest.fixture(scope="module")
def file(tiny_llama, tmp_path_factory):
    from gguf_ext import export_gguf

    path = tmp_path_factory.mktemp("file") / "m.gguf"
    export_gguf(tiny_llama, path, float_type="f32", embedding_type="f16")
    return path


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return (int(ended.value.code or 0), *capsys.readouterr())


def test_every_verb_is_in_a_row():
    assert {*REFUSED, *TAKEN, *WITHOUT} == set(VERBS)


@pytest.mark.parametrize("verb", REFUSED)
def test_a_verb_that_needs_a_folder_says_so(verb, file, tiny_llama, tmp_path, capsys):
    words = ["export", "gguf"] if verb == "export" else [verb]
    stands_for = {"OUT": str(tmp_path / "out"), "FOLDER": str(tiny_llama)}
    options = [stands_for.get(word, word) for word in REFUSED[verb]]
    code, _, told = run(capsys, *words, file, *options)
    assert code == 2
    (line,) = told.splitlines()
    assert str(file) in line
    assert "folder" in line
    assert not (tmp_path / "out").exists()


def test_a_type_without_a_grid_is_refused_by_its_tensor(file, tmp_path, capsys):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    code, _, told = run(capsys, "train", file, "--data", data, "--out", tmp_path / "out")
    assert code == 2
    assert f"{file}: tensor blk.0.attn_q.weight is F32, of floats, which is no grid" in told.splitlines()[-1]


@pytest.mark.parametrize("verb", ["train", "merge", "search"])
def test_a_file_that_is_no_model_is_refused_before_anything(verb, tmp_path, capsys, tiny_llama):
    other = tmp_path / "notes.txt"
    other.write_text("no model")
    code, _, told = run(capsys, verb, other, *(["--data", other] if verb == "train" else [other]), "--out", "o")
    assert code == 2
    assert "is a file that no plug-in reads: give a model folder or a .gguf file" in told
    lost = tmp_path / "lost.gguf"
    code, _, told = run(capsys, verb, lost, *(["--data", other] if verb == "train" else [other]), "--out", "o")
    assert code == 2
    assert len(told.splitlines()) == 1


def test_what_goes_with_a_folder_alone_is_refused_with_a_file(file, tmp_path, capsys, tiny_llama):
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}))
    common = ["--data", data, "--out", tmp_path / "out"]
    for model, option, words in (
        (file, ["--quantization-aware", "--grid", tiny_llama], "the file has its own grids, leave it out"),
        (file, ["--tuner", "lora", "--base", tiny_llama], "needs --tuner sqft"),
        (file, ["--dropout", "0.1"], "dropout=0.1 cannot be used with quantization_aware"),
        (tiny_llama, ["--base", tiny_llama], "is for a MODEL that is a file"),
    ):
        code, _, told = run(capsys, "train", model, *common, *option)
        assert code == 2
        assert words in told.splitlines()[-1]
