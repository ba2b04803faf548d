"""Every field of a configuration is checked in kind and range, where it is made."""

import json

import numpy as np
import pytest
import torch
from peft import ArrowConfig, LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from torch import nn

from peft_ext import SQFTConfig
from peft_ext.tuner import LoraTuner, SQFTTuner
from sqft_plugins.errors import SQFTError

WRONG = {
    "r": [0, -1, 10**20, 4.0, "4", True, None, [4]],
    "lora_alpha": [0, -1, "16", None, True, float("nan"), float("inf")],
    "lora_dropout": [-0.1, 1, 1.5, "0.1", None, True],
    "bias": ["yes", None, True],
    "rank_choices": [8, "8,4", ["8", "4"], [True, 8], [8, 4.0], [], [8, 0], 8.0, [8, None], [[8]], np.array(8)],
    "share_rank": ["block", None, 1, True],
    "sparse": ["yes", "False", 1, None],
    "quantization_aware": ["no", 0, None],
    "use_rslora": ["yes", 1],
    "use_dora": ["no"],
    "use_qalora": [True, "yes"],
    "qalora_group_size": [32],
    "lora_bias": ["none", 1],
    "fan_in_fan_out": ["no"],
    "grid": [5, True, ["folder"]],
    "target_modules": [5, [5], {"q_proj": 1}, [None]],
    "exclude_modules": [5, [5]],
    "modules_to_save": ["lm_head", [5], 5],
    "layers_to_transform": ["0", [0.5], -1, [True], b"0"],
    "layer_replication": [True, 4, "04", [4], [[0, 1, 2]], [["0", "4"]], {0: 4}],
    "megatron_core": [5, b"megatron"],
    "rank_pattern": [[4], {"0": 4.0}, {"0": "4"}, {"0": 0}, {0: 4}, {"0": True}],
    "alpha_pattern": [[4], {"0": "4"}, {"0": 0}, {"0": None}],
    "trainable_token_indices": [5, "5", [1.5], [-1], {"embed_tokens": 5}, {"embed_tokens": ["5"]}, [True], [], b"5"],
    "init_lora_weights": ["gausian", 5, None, ["gaussian"]],
    "megatron_config": [{"tensor_model_parallel_size": 1}],
    "mask_hash": [5],
    "grid_stamp": ["int4"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_by_the_name_of_its_field(name, value) -> None:
    with pytest.raises(SQFTError, match=rf"^{name}(=| is not supported)") as caught:
        SQFTConfig(**{"target_modules": ["0"], name: value})
    assert "\n" not in str(caught.value)


ALIKE = {
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (np.int64(1), 1),
    "trainable_token_indices": (np.array([8, 4]), [8, 4]),
}


@pytest.mark.parametrize(("name", "value"), [*((name, value) for name, (value, _) in ALIKE.items())])
def test_what_means_the_same_is_the_same(name, value) -> None:
    config = SQFTConfig(**{"target_modules": ["0"], name: value})
    assert getattr(config, name) == ALIKE[name][1]
    json.dumps(getattr(config, name))


@pytest.mark.parametrize("value", [(8, 4), {8, 4}, range(4, 9, 4)], ids=str)
def test_tokens_of_any_collection_are_trained_saved_and_loaded(sparse_llama, tokens, tmp_path, value) -> None:
    config = SQFTConfig(target_modules=["q_proj"], layers_to_transform=range(1), trainable_token_indices=value)
    get_peft_model(sparse_llama(), config).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(sparse_llama(), tmp_path)
    assert sorted(model.peft_config["default"].trainable_token_indices) == [4, 8]


@pytest.mark.parametrize(
    "ignored", [{"arrow_config": ArrowConfig(top_k=1)}, {"lora_ga_config": LoraGAConfig()}], ids=str
)
def test_what_would_do_nothing_is_refused_where_it_would_count(ignored) -> None:
    config = SQFTConfig(target_modules=["0"], **ignored)
    with pytest.raises(SQFTError, match=f"^{next(iter(ignored))} is not supported"):
        get_peft_model(nn.Sequential(nn.Linear(16, 16)), config)


@pytest.mark.parametrize("name", sorted(WRONG.keys() - {"megatron_config"}))
def test_what_is_the_default_is_right(name) -> None:
    default = getattr(SQFTConfig(), name)
    assert getattr(SQFTConfig(**{name: default}), name) == default


RIGHT = [
    {"r": np.int64(8), "rank_choices": np.array([8, 4])},
    {"rank_choices": (4, 8)},
    {"rank_choices": {8, 4}},
    {"rank_choices": range(1, 9)},
    {"lora_alpha": np.float32(4)},
    {"rank_pattern": {"0": np.int64(4)}, "alpha_pattern": {"0": 0.5}},
    {"target_modules": ("0",)},
    {"target_modules": r".*\.0|0"},
    {"lora_dropout": 0, "use_rslora": True, "bias": "all"},
    {"init_lora_weights": "orthogonal", "layers_to_transform": None},
]


@pytest.mark.parametrize("changes", RIGHT, ids=str)
def test_what_can_work_is_taken_and_saved(changes, tmp_path) -> None:
    config = SQFTConfig(**{"r": 8, "target_modules": ["0"], **changes})
    net = nn.Sequential(nn.Linear(16, 16))
    net[0].weight.data[:, ::2] = 0
    get_peft_model(net, config).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["r"] == 8
    assert saved["rank_choices"] == config.rank_choices
    assert SQFTConfig.from_pretrained(tmp_path).rank_pattern == config.rank_pattern


def test_a_damaged_configuration_of_a_saved_adapter_is_refused_by_field(tmp_path) -> None:
    SQFTConfig(r=8, target_modules=["0"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "r": "8"}))
    with pytest.raises(SQFTError, match=r"^r='8'"):
        SQFTConfig.from_pretrained(tmp_path)


def elastic() -> PeftModel:
    net = nn.Sequential(nn.Linear(16, 16))
    net[0].weight.data[:, ::2] = 0
    return get_peft_model(net, SQFTConfig(r=8, rank_choices=[8, 6, 4], target_modules=["0"])).eval()


@pytest.mark.parametrize(
    "rank", [6.0, True, None, "6.0", "six", 5, 0, -6, [6], {"0": 6.0}, {"0": None}, torch.tensor(6)]
)
def test_a_rank_that_is_none_is_refused_when_it_is_set(rank) -> None:
    model = elastic()
    with pytest.raises(SQFTError, match="rank"):
        model.set_active_rank(rank)
    assert model.set_active_rank("max") == {"0": 8}


@pytest.mark.parametrize("rank", [6, np.int64(6), "6", "r6", "@r6", {"0": np.int32(6)}])
def test_a_rank_is_a_whole_number_in_any_form(rank) -> None:
    model = elastic()
    (chosen,) = model.set_active_rank(rank).values()
    assert (chosen, type(chosen)) == (6, int)
    model(torch.randn(2, 16))


@pytest.mark.parametrize("name", ["other", ["default"], 5])
def test_the_rank_of_no_adapter_is_refused(name) -> None:
    with pytest.raises(SQFTError, match="adapter_name="):
        elastic().set_active_rank(6, name)


TOKENS = [[640], [3, 641], {"embed_tokens": [1000]}]


@pytest.mark.parametrize("kind", [SQFTConfig, LoraConfig])
@pytest.mark.parametrize("tokens", TOKENS, ids=str)
def test_tokens_beyond_the_vocabulary_are_refused_wherever_they_come_from(sparse_llama, tmp_path, kind, tokens) -> None:
    base = sparse_llama()
    size = base.config.vocab_size
    base.resize_token_embeddings(size + 500)
    config = kind(r=4, target_modules=["q_proj"], trainable_token_indices=tokens)
    tuned = get_peft_model(base, config)
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    wanted = rf"^trainable_token_indices=.* which has {size} tokens"
    tuner = SQFTTuner() if kind is SQFTConfig else LoraTuner()  # as `sqft merge` loads it
    with pytest.raises(SQFTError, match=wanted):
        tuner.load(sparse_llama(), tmp_path / "adapter")
    if kind is SQFTConfig:
        with pytest.raises(SQFTError, match=wanted):
            get_peft_model(sparse_llama(), config)
        with pytest.raises(SQFTError, match=wanted):
            PeftModel.from_pretrained(sparse_llama(), tmp_path / "adapter")
