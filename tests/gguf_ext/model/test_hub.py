"""Names as users write them: org/name-GGUF:Q4_K_M is a file of the hub's cache.

pytest tests/gguf_ext/model/test_hub.py
"""

from __future__ import annotations

import shutil

import pytest

from gguf_ext import export_gguf
from gguf_ext.errors import GGUFError
from gguf_ext.model.hub import is_gguf, locate
from sqft_plugins.checkpoint import load_tokenizer, open_model
from sqft_plugins.checkpoint.hub import local_folder

REPOSITORY, REVISION = "models--org--tiny-GGUF", "0" * 40
FILES = (
    "tiny-Q4_K_M.gguf", "tiny-Q4_0.gguf", "tiny-Q4_0_4_4.gguf", "mmproj-tiny-F16.gguf", "tiny.f16.gguf",
    "Q8_0/tiny-Q8_0-00001-of-00002.gguf", "Q8_0/tiny-Q8_0-00002-of-00002.gguf", "a-Q6_K.gguf", "b-Q6_K.gguf",
)  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the hub with the files of one repository, as `snapshot_download` finds it without a network."""
    snapshot = tmp_path / "hub" / REPOSITORY / "snapshots" / REVISION
    for name in FILES:
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(b"GGUF" + bytes(40))
    refs = tmp_path / "hub" / REPOSITORY / "refs"
    refs.mkdir()
    (refs / "main").write_text(REVISION)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("Q4_K_M", "tiny-Q4_K_M.gguf"),
        ("q4_k_m", "tiny-Q4_K_M.gguf"),
        ("Q4_0", "tiny-Q4_0.gguf"),
        ("F16", "tiny.f16.gguf"),
        ("Q8_0", "Q8_0/tiny-Q8_0-00001-of-00002.gguf"),
    ],
)
def test_a_type_names_its_file(tag, file, cache):
    assert locate(f"org/tiny-GGUF:{tag}") == cache / file


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("org/tiny-GGUF:Q5_K_M", "means no file of org/tiny-GGUF"),
        ("org/tiny-GGUF:Q6_K", r"means a-Q6_K\.gguf, b-Q6_K\.gguf of org/tiny-GGUF: give the path"),
        ("org/other-GGUF:Q4_0", "is not to be had from the hub"),
        ("lost.gguf", "is not there: check the path"),
    ],
)
def test_what_names_no_file_is_refused_in_a_line(name, words, cache):
    with pytest.raises(GGUFError, match=words) as caught:
        locate(name)
    assert "\n" not in str(caught.value)


def test_what_is_taken_for_a_file(tmp_path, cache):
    assert is_gguf(cache / FILES[0])
    assert is_gguf("org/tiny-GGUF:Q4_0")
    assert not is_gguf("org/tiny-GGUF")
    assert not is_gguf(tmp_path)
    (tmp_path / "notes").write_text("GGUX")
    assert not is_gguf(tmp_path / "notes")
    shutil.copyfile(cache / FILES[0], tmp_path / "without-an-end")
    assert is_gguf(tmp_path / "without-an-end")


def test_a_name_opens_the_model(cache, make_folder, tmp_path):
    export_gguf(make_folder("llama", tmp_path / "model"), cache / "tiny-F32.gguf", float_type="f32")
    model = open_model("org/tiny-GGUF:F32")
    assert model.path == local_folder("org/tiny-GGUF:F32") == cache / "tiny-F32.gguf"
    assert load_tokenizer("org/tiny-GGUF:F32")("a b").input_ids
