"""Finding the linear layers of tiny models."""

from __future__ import annotations

import pytest
import torch
from helpers_wrappers import WRAPPERS, wrapper_config
from torch import nn
from transformers import JambaConfig, JambaForCausalLM
from transformers.models.falcon.modeling_falcon import FalconLinear

from sqft_plugins.checkpoint import load_model
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import (
    auto_class,
    find_blocks,
    find_linears,
    is_linear,
    set_weight,
    structure_of,
    structure_of_folder,
    weight_of,
)

KINDS = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
def test_all_linears_of_the_blocks_and_no_others(tiny_model, family):
    found = find_linears(tiny_model(family))
    assert sorted(found) == sorted(f"model.layers.{block}.{kind}" for block in range(2) for kind in KINDS)


def test_structure_of_a_folder_needs_no_weights(tiny_llama, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llama / "config.json").read_text())
    structure = structure_of_folder(tmp_path)
    assert structure.blocks == "model.layers"
    assert structure.shapes["model.layers.1.mlp.down_proj"] == (64, 128)
    assert structure.outside == ["lm_head"]
    assert structure.kind("model.layers.1.mlp.down_proj") == "mlp.down_proj"
    assert structure.block("model.layers.1.mlp.down_proj") == 1
    assert structure == structure_of(load_model(tiny_llama))


def test_the_transposed_linears_of_gpt2_are_out_in(tiny_model):
    model = tiny_model("gpt2")
    structure = structure_of(model)
    assert structure.blocks == "transformer.h"
    assert structure.shapes["transformer.h.0.attn.c_attn"] == (192, 64)
    assert structure.transposed == set(structure.shapes)
    linear = find_linears(model)["transformer.h.1.mlp.c_fc"]
    assert torch.equal(weight_of(linear), linear.weight.T)
    set_weight(linear, torch.arange(256.0)[:, None] + torch.zeros(256, 64))
    assert torch.equal(linear.weight[5], torch.arange(256.0))


def test_every_family_has_its_linears(tiny_model, family):
    structure = structure_of(tiny_model(family))
    assert structure.length == 2
    assert "lm_head" not in structure.shapes
    for name, (rows, columns) in structure.shapes.items():
        weight = tiny_model(family).get_parameter(f"{name}.weight")
        assert weight.shape == ((columns, rows) if name in structure.transposed else (rows, columns))


class Block(nn.Module):
    def __init__(self, experts: int = 0):
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(experts))


def test_a_list_inside_a_block_does_not_compete():
    model = nn.Module()
    model.layers = nn.ModuleList(Block(experts=5) for _ in range(2))
    model.short = nn.ModuleList([nn.Linear(8, 8)])
    assert find_blocks(model)[0] == "layers"
    assert len(find_linears(model)) == 12


@pytest.mark.parametrize("family", list(WRAPPERS))
def test_the_blocks_of_a_model_that_sees_images_are_those_of_its_language_model(family):
    config = wrapper_config(family)
    model = auto_class(config).from_config(config)
    assert type(model).__name__.endswith("ForConditionalGeneration")
    structure = structure_of(model)
    assert structure.blocks.removeprefix("model.") in ("language_model.layers", "language_model.model.layers")
    assert structure.length == 2  # the tower has three
    towers = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {*structure.shapes}
    assert any("vision" in name or "visual" in name for name in towers)
    assert {*structure.outside} == towers


def test_architectures_say_which_of_two_classes_the_files_hold():
    config = wrapper_config("llama4")
    config.architectures = ["Llama4ForCausalLM"]
    assert auto_class(config).__name__ == "AutoModelForCausalLM"


def test_blocks_of_several_classes_beside_the_embedding_are_blocks():
    config = JambaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_experts=2, attn_layer_period=2, attn_layer_offset=1, use_mamba_kernels=False,
    )  # fmt: skip
    model = JambaForCausalLM(config)
    assert find_blocks(model)[0] == "model.layers"
    assert {type(block) for block in find_blocks(model)[1]} == {type(block) for block in model.model.layers}
    assert len({type(block) for block in model.model.layers}) == 2


def test_a_subclass_is_linear_where_it_computes_the_same():
    class Other(nn.Linear):
        def forward(self, x):
            y = x @ self.weight.T
            return y if self.bias is None else y + self.bias

    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    class Router(nn.Linear):
        def forward(self, x):
            return super().forward(x), x

    assert [is_linear(kind(4, 4)) for kind in (nn.Linear, Other, Half, Router, FalconLinear)] == [
        True, True, False, False, True,
    ]  # fmt: skip


def test_a_weight_that_two_blocks_share_is_left_out():
    model = nn.Module()
    model.layers = nn.ModuleList(Block() for _ in range(3))
    model.layers[2].up.weight = model.layers[1].up.weight
    assert list(find_linears(model)) == ["layers.0.up"]


def test_a_weight_shared_with_the_outside_is_left_out():
    model = nn.Module()
    model.layers = nn.ModuleList(Block() for _ in range(2))
    model.head = nn.Linear(8, 8)
    model.head.weight = model.layers[1].up.weight
    assert list(find_linears(model)) == ["layers.0.up"]


def test_a_model_without_blocks_is_refused():
    with pytest.raises(SQFTError, match="has no list of equal blocks"):
        find_linears(nn.Sequential(nn.Linear(4, 4)))


def test_an_unknown_architecture_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(SQFTError, match="no language model that transformers knows"):
        structure_of_folder(tmp_path)
