"""What was found in one base does not travel with a configuration to the next adapter, however it is copied."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from helpers_int4 import make_pair
from helpers_peft import sparsify
from helpers_training import make_config
from peft import PeftModel, get_peft_model

from peft_ext import SQFTConfig
from sqft_plugins.errors import MismatchError, SQFTError

BOTH = ["q_proj", "v_proj"]


@pytest.fixture
def other_base(tiny_model):
    return lambda: sparsify(tiny_model("llama"), 0.3)


def used(config, base):
    return get_peft_model(base, config).peft_config["default"]


def hash_over(base, **changes) -> str:
    return used(make_config(**changes), base).mask_hash


AGAIN = {
    "the same object": lambda given, own: given,
    "a copy": lambda given, own: copy.copy(given),
    "a deep copy": lambda given, own: copy.deepcopy(given),
    "replace": lambda given, own: dataclasses.replace(given),
    "to_dict": lambda given, own: SQFTConfig(**given.to_dict()),
    "asdict": lambda given, own: SQFTConfig(**{f.name: getattr(given, f.name) for f in dataclasses.fields(given)}),
    "pickled": lambda given, own: pickle.loads(pickle.dumps(given)),
    "the model's": lambda given, own: own,
    "a copy of the model's": lambda given, own: copy.copy(own),
    "replace of the model's": lambda given, own: dataclasses.replace(own),
    "to_dict of the model's": lambda given, own: SQFTConfig(**own.to_dict()),
}


@pytest.mark.parametrize("again", AGAIN.values(), ids=list(AGAIN))
def test_a_used_configuration_serves_again(sparse_llama, other_base, again) -> None:
    given = make_config(target_modules=BOTH)
    own = used(given, sparse_llama())
    assert own.mask_hash == hash_over(sparse_llama(), target_modules=BOTH)

    assert used(again(given, own), other_base()).mask_hash == hash_over(other_base(), target_modules=BOTH)
    fewer = dataclasses.replace(again(given, own), target_modules=["q_proj"])
    assert used(fewer, sparse_llama()).mask_hash == hash_over(sparse_llama(), target_modules=["q_proj"])
    assert own.mask_hash == hash_over(sparse_llama(), target_modules=BOTH)  # as it was


def test_one_configuration_serves_for_two_adapters_of_a_model(sparse_llama, tmp_path) -> None:
    given = make_config(target_modules=BOTH)
    model = get_peft_model(sparse_llama(), given)
    model.add_adapter("second", given)
    model.add_adapter("third", dataclasses.replace(model.peft_config["default"], target_modules=["q_proj"]))
    assert len({id(config) for config in model.peft_config.values()}) == 3
    model.save_pretrained(tmp_path)
    for folder, targets in ((tmp_path, BOTH), (tmp_path / "second", BOTH), (tmp_path / "third", ["q_proj"])):
        saved = json.loads((folder / "adapter_config.json").read_text())
        assert saved["mask_hash"] == hash_over(sparse_llama(), target_modules=targets)
        assert sorted(saved["target_modules"]) == targets


def test_peft_finds_the_very_object_in_the_model(sparse_llama) -> None:
    """Which its own classes count on: those for classification write `modules_to_save` into it later."""
    for task in ("CAUSAL_LM", None):
        given = make_config(task_type=task)
        for _ in range(2):  # also the second time, over the same base
            assert used(given, sparse_llama()) is given


def test_a_second_model_does_not_change_what_the_first_one_saves(sparse_llama, other_base, tmp_path) -> None:
    given = make_config()
    first, second = get_peft_model(sparse_llama(), given), get_peft_model(other_base(), given)
    for model, base in ((first, sparse_llama), (second, other_base)):
        model.save_pretrained(tmp_path)
        PeftModel.from_pretrained(base(), tmp_path)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["mask_hash"] == hash_over(base())


def test_a_base_without_weights_takes_no_hash_of_another(sparse_llama, tiny_model) -> None:
    given = make_config()
    used(given, sparse_llama())
    with torch.device("meta"):
        empty = tiny_model("llama")
    assert used(given, empty.to("meta")).mask_hash is None
    assert given.mask_hash == hash_over(sparse_llama())


def test_a_saved_configuration_still_names_its_base(sparse_llama, other_base, tmp_path) -> None:
    get_peft_model(sparse_llama(), make_config()).save_pretrained(tmp_path)
    loaded = SQFTConfig.from_pretrained(tmp_path)
    assert type(loaded.mask_hash) is str
    with pytest.raises(MismatchError, match=r"other zeros.* A new adapter with the same settings has mask_hash=None"):
        get_peft_model(other_base(), loaded)
    get_peft_model(other_base(), dataclasses.replace(loaded, mask_hash=None))
    model = PeftModel.from_pretrained(sparse_llama(), tmp_path)
    again = dataclasses.replace(model.peft_config["default"], target_modules=["q_proj"])
    model.add_adapter("of a loaded one", again)
    model.save_pretrained(tmp_path / "again")
    with pytest.raises(MismatchError, match="other zeros"):
        PeftModel.from_pretrained(other_base(), tmp_path / "again")


def test_a_grid_does_not_travel_either(tiny_model, tmp_path) -> None:
    pairs = [make_pair(tiny_model, tmp_path / str(size), group_size=size) for size in (32, 64)]
    given = pairs[0].config("int4")
    own = used(given, pairs[0].load("int4"))
    assert own.grid_stamp["group_size"] == 32
    for config in (given, own, dataclasses.replace(own), SQFTConfig(**own.to_dict()), copy.deepcopy(own)):
        assert used(config, pairs[1].load("int4")).grid_stamp["group_size"] == 64
    assert own.grid_stamp["group_size"] == 32


def test_a_failed_attempt_leaves_the_configuration_as_it_was(sparse_llama) -> None:
    given = make_config(target_modules=["q_proj", "post_attention_layernorm"])
    before = given.to_dict()
    with pytest.raises(SQFTError, match="linear layers only"):
        get_peft_model(sparse_llama(), given)
    assert {**given.to_dict(), "base_model_name_or_path": None} == {**before, "base_model_name_or_path": None}


def test_one_configuration_serves_for_several_bases(sparse_llama, tiny_model) -> None:
    settings = make_config()
    models = [get_peft_model(base, settings) for base in (sparse_llama(), sparsify(tiny_model("llama"), 0.3))]
    hashes = [model.active_peft_config.mask_hash for model in models]  # each its own
    alone = [get_peft_model(base, make_config()) for base in (sparse_llama(), sparsify(tiny_model("llama"), 0.3))]
    assert hashes == [model.active_peft_config.mask_hash for model in alone]
    assert hashes[0] != hashes[1]
