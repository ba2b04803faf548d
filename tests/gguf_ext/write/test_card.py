"""What llama.cpp and hubs show of a model: name, licence, languages, tags, base."""

from __future__ import annotations

import shutil

import gguf
import pytest

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.reader import GGUFFile

CARD = """---
license: other
license_name: gemma
license_link: https://example.org/terms
language:
- en
- de
- no
tags:
- sparse
- sqft
base_model: google/gemma-3-270m
---
# A model
"""


@pytest.fixture
def model(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "my-model")


def test_a_card_gives_licence_languages_tags_and_base(model, tmp_path):
    (model / "README.md").write_text(CARD)
    export_gguf(model, tmp_path / "m.gguf")
    general = {
        key: value for key, value in GGUFFile(tmp_path / "m.gguf").metadata.items() if key.startswith("general.")
    }
    assert general["general.name"] == "my-model"
    assert general["general.license"] == "other"
    assert general["general.license.name"] == "gemma"
    assert general["general.license.link"] == "https://example.org/terms"
    assert general["general.languages"] == ["en", "de"]
    assert general["general.tags"] == ["sparse", "sqft"]
    assert general["general.base_model.count"] == 1
    assert general["general.base_model.0.name"] == "gemma-3-270m"
    assert general["general.base_model.0.organization"] == "google"
    assert general["general.base_model.0.repo_url"] == "https://huggingface.co/google/gemma-3-270m"
    assert verify_gguf(model, tmp_path / "m.gguf").exact


def test_the_base_of_the_stamp_comes_first(llama_int4, tmp_path):
    model = shutil.copytree(llama_int4, tmp_path / "int4")
    (model / "README.md").write_text(CARD)
    export_gguf(model, tmp_path / "m.gguf")
    assert GGUFFile(tmp_path / "m.gguf").metadata["general.base_model.0.name"] == "tiny"


@pytest.mark.parametrize(
    "text", ["no head", "---\nlicense: [\n---\n", "---\n- a\n---\n", "---\nlicense: 5\ntags: 7\n---\n"]
)
def test_a_card_without_a_readable_head_is_left_out(text, model, tmp_path):
    (model / "README.md").write_text(text)
    export_gguf(model, tmp_path / "m.gguf")
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    assert not {"general.license", "general.tags", "general.base_model.count"} & set(metadata)


def test_the_package_makes_a_version_and_a_size_of_a_name(tmp_path):
    """Why `gguf.Metadata` is not used: what it guesses from a folder's name is not so."""
    folder = tmp_path / "phi3-mini-v2-50"
    folder.mkdir()
    guessed = gguf.Metadata.load(model_path=folder, total_params=10**9)
    assert (guessed.version, guessed.size_label) == ("v2-50", "mini")
