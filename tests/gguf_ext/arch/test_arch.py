"""The tables: rope factors, row orders, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gguf_ext.arch import ARCHITECTURES, find_architecture, read_config, rotary_order
from gguf_ext.arch.rope import llama3_rope_factors
from gguf_ext.errors import UnmappedTensorError, UnsupportedArchitectureError
from gguf_ext.gguf_package import module_name
from gguf_ext.write.tensors import place_tensors
from sqft_plugins.checkpoint import ModelFolder

ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_theta": 500000.0,
}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_factors_are_those_of_transformers(factor):
    rope = {**ROPE, "factor": factor}
    config = LlamaConfig(hidden_size=512, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope)
    wanted, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 128, 2).float() / 128)
    torch.testing.assert_close(plain / llama3_rope_factors(128, rope), wanted, rtol=2e-6, atol=0)


def test_rotary_order_written_out():
    assert rotary_order(8, 2).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rotary_order(6, 1).tolist() == [0, 3, 1, 4, 2, 5]


def test_every_table_has_its_own_names():
    for architecture in ARCHITECTURES:
        assert len({architecture.target(rule) for rule in architecture.rules}) == len(architecture.rules)
        assert len({rule.source for rule in architecture.rules}) == len(architecture.rules)


def test_the_gguf_package_names_the_modules_of_every_table_but_two_of_bloom_and_tied_heads():
    given = {(table.name, rule.source): rule.target for table in ARCHITECTURES for rule in table.rules if rule.target}
    tied = {(table.name, "lm_head"): "output" for table in ARCHITECTURES if table.head == "tied"}
    assert given == {
        ("bloom", "transformer.word_embeddings_layernorm"): "token_embd_norm",
        ("bloom", "transformer.h.{i}.post_attention_layernorm"): "blk.{i}.ffn_norm",
        **tied,
    }
    for name, source in given:  # when the package knows them, the targets go
        with pytest.raises(UnsupportedArchitectureError, match="the gguf package has no name for"):
            module_name(name, source)
    assert module_name("gemma3", "model.layers.{i}.pre_feedforward_layernorm") == "blk.{i}.ffn_norm"


def test_unknown_architectures_name_the_known():
    with pytest.raises(
        UnsupportedArchitectureError,
        match=r"is XGLMForCausalLM, which has no table here.*known: ArceeForCausalLM, BloomForCausalLM",
    ):
        find_architecture({"architectures": ["XGLMForCausalLM"]}, "m")
    with pytest.raises(UnsupportedArchitectureError, match="did you mean 'LlamaForCausalLM'"):
        find_architecture({"architectures": ["LlamaForCausalML"]}, "m")
    with pytest.raises(UnsupportedArchitectureError, match=r"llama\.cpp has no OPT"):
        find_architecture({"architectures": ["OPTForCausalLM"]}, "m")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gemma3", {"query_pre_attn_scalar": 31}, "query_pre_attn_scalar=31 is fixed to 32"),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ("gemma3", {"hidden_activation": "relu"}, "hidden_activation='relu'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "rope_type='dynamic'",
        ),
    ],
)
def test_options_that_llama_cpp_lacks_are_refused(name, changes, words, request, tmp_path):
    shutil.copy(request.getfixturevalue(name) / "config.json", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config.update(changes)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitectureError, match=words):
        read_config(tmp_path, find_architecture(config, tmp_path))


class _Folder(ModelFolder):
    """A folder with other tensor names than it has."""

    def __init__(self, path, without=(), more=()):
        super().__init__(path)
        self.files = {name: file for name, file in self.files.items() if name not in without}
        self.files.update(dict.fromkeys(more, path))


def test_tensors_without_a_place_and_missing_ones_are_refused(llama):
    architecture = find_architecture(ModelFolder(llama).config, llama)
    config = read_config(llama, architecture)
    with pytest.raises(UnmappedTensorError, match=r"tensor model\.vision\.weight of model"):
        place_tensors(_Folder(llama, more=["model.vision.weight"]), architecture, config)
    with pytest.raises(UnmappedTensorError, match=r"has no tensor for blk\.1\.ffn_up\.weight \(1 missing\)"):
        place_tensors(_Folder(llama, without=["model.layers.1.mlp.up_proj.weight"]), architecture, config)
    with pytest.raises(UnmappedTensorError, match=r"no tensor for output\.weight"):
        place_tensors(_Folder(llama, without=["lm_head.weight"]), architecture, config)
    ignored = place_tensors(_Folder(llama, more=["model.layers.0.self_attn.rotary_emb.inv_freq"]), architecture, config)
    assert len(ignored) == len(ModelFolder(llama).files)
