"""The model card of a folder that the verbs write: the hub reads its head, its code loads the model, a base's stays."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from sqft_plugins.cards.model import BASE_CARD, write_model_card
from sqft_plugins.checkpoint import ModelFolder, load_model
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder

BASES = "---\nlicense: gemma\nlicense_link: https://ai.google.dev/gemma/terms\nlanguage: [en, de]\ntags: [chat]\n"
BASES += "model-index:\n- name: x\n  results: []\nbase_model: their/base\n---\n# A base\n\nIt counts sheep.\n"


@pytest.fixture(scope="module")
def folders(tiny_gemma, tmp_path_factory):
    """A base with a card, pruned, and that as INT4."""
    root = tmp_path_factory.mktemp("card")
    shutil.copytree(tiny_gemma, root / "tiny-base")
    (root / "tiny-base" / "README.md").write_text(BASES)
    prune_folder(root / "tiny-base", root / "pruned", method="magnitude", sparsity=0.5)
    quantize_folder(root / "pruned", root / "int4")
    return root


def card_of(folder) -> ModelCard:
    return ModelCard.load(folder / "README.md")  # raises where the head is no valid metadata


def test_the_head_keeps_the_licence_and_names_no_path(folders) -> None:
    head = card_of(folders / "int4").data.to_dict()
    assert (head["license"], head["language"]) == ("gemma", ["en", "de"])
    assert head["license_link"] == "https://ai.google.dev/gemma/terms"
    assert (head["library_name"], head["pipeline_tag"]) == ("transformers", "text-generation")
    assert head["tags"] == ["chat", "compressed-tensors", "int4", "sparse", "sqft"]
    assert "base_model" not in head  # the hub refuses a card that names a folder, and their/base is the base's base
    assert "model-index" not in head  # the base's results are not this model's
    assert card_of(folders / "pruned").data.to_dict()["tags"] == ["chat", "sparse", "sqft"]


def test_the_text_says_what_was_done_and_the_bases_card_stays_once(folders) -> None:
    text = card_of(folders / "int4").text
    model = ModelFolder(folders / "int4")
    for row in (
        "| base | tiny-base |",
        "| steps | magnitude → round-to-nearest |",
        "| pruned | 50 % of the weights of 14 linear layers |",
        "| precision | INT4, groups of 32, symmetric, pack-quantized |",
        f"| size | {model.weight_bytes / 1e6:,.1f} MB |",
    ):
        assert row in text
    assert text.count(BASE_CARD) == text.count("It counts sheep.") == text.count("## Loading") == 1
    assert text.index(BASE_CARD) < text.index("# A base")


def test_its_code_loads_the_model(folders) -> None:
    code = re.search(r"```python\n(.*?)```", card_of(folders / "int4").text, re.DOTALL)[1]
    found: dict = {}
    exec(code.replace("MODEL", str(folders / "int4")), found)
    tokens = torch.arange(3, 11)[None]
    with torch.no_grad():
        expected = load_model(folders / "int4", dtype=found["model"].dtype)(tokens).logits
        assert torch.equal(found["model"](tokens).logits, expected)


def test_int4_of_gpt2_is_loaded_by_us(tiny_model, tiny_tokenizer, tmp_path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer("byte-level").save_pretrained(tmp_path / "gpt2")
    quantize_folder(tmp_path / "gpt2", tmp_path / "int4")
    code = re.search(r"```python\n(.*?)```", card_of(tmp_path / "int4").text, re.DOTALL)[1]
    assert "sqft_plugins.checkpoint" in code
    found: dict = {}
    exec(code.replace("MODEL", str(tmp_path / "int4")), found)
    assert isinstance(found["model"], type(AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2")))


def test_a_card_that_cannot_be_read_is_no_reason_to_stop(folders, tmp_path, capsys) -> None:
    shutil.copytree(folders / "pruned", tmp_path / "model")
    for broken in (b"---\nlicense: [\n---\ntext", b"\xff\xfe"):
        (tmp_path / "model" / "README.md").write_bytes(broken)
        write_model_card(tmp_path / "model")
        assert "README.md of the base cannot be read" in capsys.readouterr().err
        assert card_of(tmp_path / "model").data.to_dict()["library_name"] == "transformers"


def test_the_title_names_the_grid(folders, tmp_path) -> None:
    quantize_folder(folders / "pruned", tmp_path / "three", bits=3, symmetric=False)
    text = card_of(tmp_path / "three").text
    assert re.search(r"^# .*, 50 % sparse INT3$", text, re.MULTILINE)
    assert "INT4" not in text.partition(BASE_CARD)[0]
    assert ModelFolder(tmp_path / "three").label == "INT3"
    assert ModelFolder(folders / "pruned").label == "float"
