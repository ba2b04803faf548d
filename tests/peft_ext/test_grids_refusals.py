"""What quantization-aware adapters cannot do is refused in one line that names it."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers_int4 import make_pair, without_masks
from helpers_peft import TARGETS, fill_adapter, sparsify
from peft import PeftModel, convert_to_lora, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file

from peft_ext import SQFTConfig
from sqft_plugins.checkpoint import load_model
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import CheckpointError, GridError, MismatchError, SQFTError
from sqft_plugins.tune.merge import merge_folder

pytestmark = pytest.mark.filterwarnings("ignore:.*put_rest_on_grid")


@pytest.fixture(scope="module")
def pair(tiny_model, tiny_tokenizer, tmp_path_factory):
    return make_pair(tiny_model, tmp_path_factory.mktemp("pair"), tokenizer=tiny_tokenizer("byte-level"))


@pytest.fixture(scope="module")
def adapters(pair, tmp_path_factory):
    """A saved adapter of each kind."""
    folder = tmp_path_factory.mktemp("adapters")
    for kind in ("int4", "float"):
        fill_adapter(get_peft_model(pair.load(kind), pair.config(kind))).save_pretrained(folder / kind)
    return folder


def two_adapters(pair):
    model = get_peft_model(pair.load("int4"), pair.config("int4"))
    model.add_adapter("second", pair.config("int4"))
    return fill_adapter(model).eval()


# --- fields ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_dropout": 0.1}, r"lora_dropout=0.1 cannot be used with quantization_aware: .* Use lora_dropout=0"),
        ({"lora_bias": True}, r"lora_bias=True cannot be used with quantization_aware"),
        ({"bias": "all"}, r"bias='all', lora_bias=False cannot be used with quantization_aware"),
        ({"quantization_aware": False, "grid": "x"}, r"grid='x' needs quantization_aware=True"),
    ],
)
def test_fields_that_exclude_each_other(changes, message) -> None:
    with pytest.raises(SQFTError, match=message):
        SQFTConfig(**{"target_modules": TARGETS, "quantization_aware": True, **changes})


# --- one adapter at a time ---


def test_two_active_adapters(pair, tokens) -> None:
    model = two_adapters(pair)
    with pytest.raises(SQFTError, match=r"'default' is quantization-aware .*: activate one adapter, not \['default', "):
        model.base_model.set_adapter(["default", "second"])
    model.set_adapter("second")
    assert model.base_model.quantized("second")
    with pytest.raises(SQFTError, match=r"merge one adapter, not \['default', 'second'\] together"):
        model.merge_adapter(["default", "second"])
    model.merge_adapter(["default"])
    with pytest.raises(SQFTError, match=r"merge one adapter, not \['default', 'second'\] together"):
        model.merge_adapter(["second"])


def test_mixed_batches(pair, tokens) -> None:
    model = two_adapters(pair)
    with pytest.raises(SQFTError, match=r"rounds the whole weight, so it works alone: .* without adapter_names"):
        model(input_ids=tokens, adapter_names=["default", "second", "__base__"])


def test_weighted_combination_and_conversion_to_lora(pair) -> None:
    model = two_adapters(pair)
    with pytest.raises(SQFTError, match=r"'second' is quantization-aware: .* cannot be combined"):
        model.add_weighted_adapter(["second"], [0.5], "mix", combination_type="linear")
    with pytest.raises(TypeError, match=r"do not support LoRA conversion: .*peft_ext\.layer\.Linear"):
        convert_to_lora(model, rank=4)


def test_hotswapping_an_adapter_of_another_grid(pair, adapters, tiny_model, tmp_path) -> None:
    other = make_pair(tiny_model, tmp_path, group_size=64)
    model = get_peft_model(other.load("int4"), other.config("int4"))
    with pytest.raises(ValueError, match="Configs are incompatible: for grid_stamp"):
        hotswap_adapter(model, str(adapters / "int4"), "default")


# --- the base and its grid ---


def test_a_base_without_a_grid(pair, tiny_model) -> None:
    with pytest.raises(MismatchError, match=r"needs a grid, but .*pruned is a float model: name the folder"):
        get_peft_model(pair.load("float"), pair.config("int4"))
    with pytest.raises(SQFTError, match="this model was not loaded from a folder: name the folder"):
        get_peft_model(sparsify(tiny_model("llama")), pair.config("int4"))
    with pytest.raises(CheckpointError, match=r"grid='/nowhere/int4' cannot be read .*: .* set config.grid"):
        get_peft_model(pair.load("float"), pair.config("int4", grid="/nowhere/int4"))


def test_a_masked_adapter_over_int4_needs_the_grid(pair) -> None:
    with pytest.raises(SQFTError, match=r"sparse=True over a quantized base .*q_proj\) .*quantization_aware=True"):
        get_peft_model(pair.load("int4"), SQFTConfig(target_modules=TARGETS))


def test_a_dense_adapter_over_int4_is_not_merged(pair, tokens) -> None:
    model = get_peft_model(pair.load("int4"), SQFTConfig(target_modules=TARGETS, sparse=False))
    fill_adapter(model)(input_ids=tokens)
    with pytest.raises(SQFTError, match=r"'default' is not quantization-aware and its base is quantized: .* Keep it"):
        model.merge_and_unload()


def test_an_int4_folder_without_its_mask(pair, tmp_path) -> None:
    without_masks(pair.int4, tmp_path / "int4")
    message = r"has no mask \(sqft/mask.safetensors\), .* train over the sparse float base with grid='…'"
    with pytest.raises(MismatchError, match=message):
        get_peft_model(load_model(tmp_path / "int4"), pair.config("int4"))
    # over the float base the mask is not needed: its zeros are the mask
    model = get_peft_model(pair.load("float"), pair.config("float", grid=str(tmp_path / "int4")))
    assert model.active_peft_config.grid_stamp["base"] == "float"


def changed_masks(pair, folder, change):
    """A copy of the INT4 folder with other masks."""
    shutil.copytree(pair.int4, folder)
    file = folder / "sqft" / "mask.safetensors"
    save_file({name: change(mask) for name, mask in load_file(file).items()}, file)
    return folder


def test_a_mask_of_the_wrong_shape(pair, tmp_path) -> None:
    folder = changed_masks(pair, tmp_path / "int4", lambda mask: mask[:-1].contiguous())
    with pytest.raises(CheckpointError, match=r"mask of model\.layers\.0.* is \(63, 8\) but its weight \(64, 64\)"):
        get_peft_model(load_model(folder), pair.config("int4"))


def test_a_mask_that_the_codes_contradict(pair, tmp_path) -> None:
    folder = changed_masks(pair, tmp_path / "int4", torch.bitwise_not)
    with pytest.raises(MismatchError, match=r"\d+ pruned weights of .* are not zero in .*: its mask is another"):
        get_peft_model(load_model(folder), pair.config("int4"))
    with pytest.raises(MismatchError, match=r"\d+ weights of .* are zero here and kept in .*, or the other way round"):
        get_peft_model(pair.load("float"), pair.config("float", grid=str(folder)))


def test_a_grid_that_does_not_divide(pair, tmp_path) -> None:
    shutil.copytree(pair.int4, tmp_path / "int4")
    config = json.loads((tmp_path / "int4" / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 48
    (tmp_path / "int4" / "config.json").write_text(json.dumps(config))
    with pytest.raises(GridError, match=r"group_size=48 does not divide in=64 of model\.layers\.0"):
        get_peft_model(pair.load("float"), pair.config("float", grid=str(tmp_path / "int4")))


def test_a_module_that_is_not_int4(pair) -> None:
    with pytest.raises(CheckpointError, match=r"adapts lm_head, which is not quantized in .*: leave it out with ex"):
        get_peft_model(pair.load("int4"), pair.config("int4", target_modules=["lm_head"]))


# --- an adapter on a base that is not its own ---


def load(base, adapter, grid=None):
    config = SQFTConfig.from_pretrained(adapter)
    config.grid = config.grid if grid is None else str(grid)
    return PeftModel.from_pretrained(base, adapter, config=config)


def test_the_other_kind_of_base(pair, adapters) -> None:
    with pytest.raises(MismatchError, match=r"trained over the dequantized codes .*, this base is the float"):
        load(pair.load("float"), adapters / "int4", grid=pair.int4)
    with pytest.raises(MismatchError, match=r"is a float model: .* or load the adapter on .*int4"):
        load(pair.load("float"), adapters / "int4")
    with pytest.raises(MismatchError, match=r"trained over the float base .*, this base is the dequantized"):
        load(pair.load("int4"), adapters / "float")


def test_other_zeros_other_scales_other_weights(pair, adapters, tiny_model, tmp_path) -> None:
    pruned = sparsify(tiny_model("llama"), 0.3)
    pruned.save_pretrained(tmp_path / "pruned")
    quantize_folder(tmp_path / "pruned", tmp_path / "int4")
    with pytest.raises(MismatchError, match=r"with other zeros \(mask [0-9a-f]{12}, this base [0-9a-f]{12}\)"):
        load(load_model(tmp_path / "int4"), adapters / "int4")
    quantize_folder(pair.pruned, tmp_path / "wide", group_size=64)
    with pytest.raises(MismatchError, match=r"trained through other groups \(group_size 32, .* has 64\)"):
        load(pair.load("float"), adapters / "float", grid=tmp_path / "wide")
    other = pair.load("float")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    quantize_folder(tmp_path / "other", tmp_path / "other-int4")
    with pytest.raises(MismatchError, match=r"trained through other scales \(scale_hash [0-9a-f]{12}, .*name its own"):
        load(pair.load("float"), adapters / "float", grid=tmp_path / "other-int4")
    with pytest.raises(MismatchError, match=r"trained over other weights \(float32, codes [0-9a-f]{12}; this base"):
        load(other, adapters / "float")


def test_a_model_that_was_merged_into_is_another_base(pair, adapters, tmp_path) -> None:
    merge_folder(pair.int4, adapters / "int4", tmp_path / "merged")
    with pytest.raises(MismatchError, match=r"over other weights .*a model that was merged into has other codes, too"):
        load(load_model(tmp_path / "merged"), adapters / "int4")
    with pytest.raises(MismatchError, match=r"q_proj holds codes, but not those of .*int4"):
        load(load_model(tmp_path / "merged"), adapters / "float")


def test_a_second_adapter_is_checked_as_the_first_is(pair, adapters, tokens) -> None:
    model = fill_adapter(get_peft_model(pair.load("int4"), pair.config("int4"))).eval()
    before = model(input_ids=tokens).logits
    with pytest.raises(MismatchError, match=r"adapter 'second' was trained over the float base"):
        model.load_adapter(adapters / "float", "second")
    assert list(model.peft_config) == ["default"]
    assert not [name for name, _ in model.named_parameters() if "second" in name]
    assert torch.equal(model(input_ids=tokens).logits, before)
    model.load_adapter(adapters / "int4", "second")
    model.set_adapter("second")
    assert torch.equal(model(input_ids=tokens).logits, before)  # both were filled with the same numbers


def test_a_float_base_rounded_to_another_dtype(pair, adapters) -> None:
    message = r"over other weights \(float32, codes .*; this base bfloat16, .*in its own dtype"
    with pytest.raises(MismatchError, match=message):
        load(pair.load("float", torch.bfloat16), adapters / "float")
