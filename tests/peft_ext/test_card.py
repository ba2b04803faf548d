"""The README beside a saved adapter says how to load it; what it says is executed here."""

from __future__ import annotations

import re

import pytest
import torch
from helpers_peft import fill_adapter
from helpers_training import make_config
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from peft_ext import SQFTConfig


@pytest.fixture
def saved(sparse_llama, tokens, tmp_path):
    """A saved adapter over a saved base, and its logits at the median rank."""
    sparse_llama().save_pretrained(tmp_path / "base")
    model = fill_adapter(get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), make_config()))
    model.save_pretrained(tmp_path / "adapter")
    model.eval().set_active_rank("median")
    with torch.no_grad():
        return tmp_path / "adapter", model(tokens).logits


def test_the_code_in_the_card_loads_the_adapter(saved, tokens) -> None:
    folder, expected = saved
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    found: dict = {}
    exec(code.replace("PATH OF THIS FOLDER", str(folder)), found)
    with torch.no_grad():
        assert torch.equal(found["model"].eval()(tokens).logits, expected)


def test_the_card_says_base_pipeline_and_ranks(saved) -> None:
    folder, _ = saved
    text = (folder / "README.md").read_text()
    assert "More Information Needed" not in text
    for line in ("| pipeline | SparsePEFT |", "| ranks | 8, 6, 4 |", "| merge | keeps every zero of the base |"):
        assert line in text
    assert f"| base | {folder.parent / 'base'} |" in text
    assert "sqft" in ModelCard.load(folder / "README.md").data["tags"]


def test_the_head_names_the_base_as_peft_does(saved, sparse_llama) -> None:
    folder, _ = saved
    assert ModelCard.load(folder / "README.md").data["base_model"] == str(folder.parent / "base")
    base = sparse_llama()
    base.name_or_path = base.config._name_or_path = "someone/sparse-llama"
    get_peft_model(base, make_config()).save_pretrained(folder.parent / "hub")
    head = ModelCard.load(folder.parent / "hub" / "README.md").data
    assert head["base_model"] == "someone/sparse-llama"
    assert "base_model:adapter:someone/sparse-llama" in head["tags"]


def test_a_base_that_is_no_transformers_model_has_no_name(tmp_path) -> None:
    net = nn.Sequential(nn.Linear(16, 16))
    get_peft_model(net, SQFTConfig(r=4, target_modules=["0"])).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "base_model" not in card.data.to_dict()
    assert len(card.text) > 1000  # as PEFT's own tests ask of a card


def test_saving_logs_nothing(saved, sparse_llama, caplog) -> None:
    folder, _ = saved
    for place in ("adapter", "new"):
        get_peft_model(sparse_llama(), make_config()).save_pretrained(folder.parent / place)
    make_config().save_pretrained(folder)
    assert "metadata" not in caplog.text


def test_a_card_without_a_head_keeps_its_text(saved) -> None:
    folder, _ = saved
    (folder / "README.md").write_text("# Mine, without a head\n")
    make_config().save_pretrained(folder)
    text = (folder / "README.md").read_text()
    assert "# Mine, without a head" in text
    assert "library_name: peft" in text


def test_the_card_that_trainer_writes_says_how_to_load(sparse_llama, tmp_path) -> None:
    model = get_peft_model(sparse_llama(), make_config())
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 4
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name="counting")
    text = (tmp_path / "README.md").read_text()
    assert "# counting" in text
    assert text.count("import peft_ext") == 1
    head = ModelCard.load(tmp_path / "README.md").data
    assert "sqft" in head["tags"]
    assert head["library_name"] == "peft"
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text().count("import peft_ext") == 1


def test_cards_of_other_adapters_are_left_alone(sparse_llama, tmp_path) -> None:
    get_peft_model(sparse_llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    assert "peft_ext" not in (tmp_path / "README.md").read_text()


def test_a_base_in_the_hubs_cache_is_named_as_the_hub_does(saved) -> None:
    folder, _ = saved
    cached = "/home/me/.cache/huggingface/hub/models--someone--sparse-llama/snapshots/abc"
    (folder / "README.md").write_text(f"---\nbase_model: {cached}\ntags: ['base_model:adapter:{cached}']\n---\nMine.\n")
    make_config(base_model_name_or_path=cached).save_pretrained(folder)
    head = ModelCard.load(folder / "README.md").data
    assert head["base_model"] == "someone/sparse-llama"
    assert head["tags"] == ["sqft"]


def test_a_card_of_somebody_else_is_kept_and_gets_how_to_load(saved, sparse_llama) -> None:
    folder, _ = saved
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n# My adapter\n\nIt counts sheep.\n")
    get_peft_model(sparse_llama(), make_config()).save_pretrained(folder)
    text = (folder / "README.md").read_text()
    assert text.index("It counts sheep.") < text.index("## Loading this adapter") < text.index("import peft_ext")
    card = ModelCard.load(folder / "README.md")
    assert card.data["license"] == "mit"
    get_peft_model(sparse_llama(), make_config()).save_pretrained(folder)
    assert (folder / "README.md").read_text().count("import peft_ext") == 1


def test_a_configuration_alone_gets_no_card(tmp_path) -> None:
    make_config().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter_config.json"]
