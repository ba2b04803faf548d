"""`sqft verify` also tells whether the file has the model's tokenizer."""

from __future__ import annotations

import json
import shutil

import pytest

from gguf_ext import export_gguf, verify_gguf


@pytest.fixture(scope="module")
def files(llama, gemma3, tmp_path_factory):
    """Family → (the model's folder, its file)."""
    at = tmp_path_factory.mktemp("files")
    for name, model in (("llama", llama), ("gemma3", gemma3)):
        export_gguf(model, at / f"{name}.gguf")
    return {"llama": (llama, at / "llama.gguf"), "gemma3": (gemma3, at / "gemma3.gguf")}


def edited(source, place, edit):
    """A copy of a model folder with another tokenizer.json."""
    folder = shutil.copytree(source, place / "edited")
    data = json.loads((folder / "tokenizer.json").read_text())
    edit(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_the_tokenizer_of_an_export_is_equal(files, family):
    report = verify_gguf(*files[family])
    assert report.tokenizer == "equal"
    assert report.exact


def swap_two_tokens(data):
    vocabulary = data["model"]["vocab"]
    one, other = [token for token in vocabulary if len(token) == 1 and token.isalpha()][:2]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]


def swap_two_merges(data):
    merges = data["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]


@pytest.mark.parametrize(
    ("family", "edit", "key", "line"),
    [
        ("llama", swap_two_tokens, "tokenizer.ggml.tokens", "2 differ, the first at "),
        ("gemma3", swap_two_tokens, "tokenizer.ggml.tokens", "2 differ, the first at "),
        ("llama", swap_two_merges, "tokenizer.ggml.merges", "2 differ, the first at 0: "),
        ("llama", lambda data: data["model"]["merges"].pop(), "tokenizer.ggml.merges", " in the file, "),
    ],
)
def test_another_tokenizer_is_a_difference(files, tmp_path, family, edit, key, line):
    model, file = files[family]
    report = verify_gguf(edited(model, tmp_path, edit), file)
    assert report.tokenizer == "different"
    assert not report.ok
    assert [item.name for item in report.differences] == [key]
    assert line in report.differences[0].what


def test_another_end_of_text_is_a_difference(files, tmp_path):
    model, file = files["llama"]
    folder = shutil.copytree(model, tmp_path / "edited")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": config["bos_token"]}))
    assert [item.name for item in verify_gguf(folder, file).differences] == ["tokenizer.ggml.eos_token_id"]


def test_a_folder_without_a_tokenizer_is_compared_without_it(files, tmp_path):
    model, file = files["llama"]
    folder = shutil.copytree(model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*", "special*"))
    report = verify_gguf(folder, file)
    assert report.exact
    assert report.tokenizer.startswith("not compared: ")
    assert "has no tokenizer" in report.tokenizer
