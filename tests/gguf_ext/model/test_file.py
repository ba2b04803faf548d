"""A file is the model that it was exported from: configuration, names, rows, logits. Every architecture, every kind of
rotary positions.

    pytest tests/gguf_ext/model/test_file.py
"""

from __future__ import annotations

import pytest
import torch
from helpers_arch import LLAMA3, YARN
from helpers_gguf import rewritten
from transformers import AutoModelForCausalLM

from gguf_ext import export_gguf
from gguf_ext.errors import UnmappedTensorError, UnsupportedArchitectureError
from gguf_ext.model.file import GGUFModel
from sqft_plugins.checkpoint import ModelFolder, load_model, open_model
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import structure_of_folder, transformers_config

LLAMA3 = {**LLAMA3, "original_max_position_embeddings": 8192}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 256,
}
LONG = {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, "original_max_position_embeddings": 256}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
GEMMA3 = {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
MODELS = {
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-yarn-attention": ("llama", {"rope_parameters": {**YARN, "attention_factor": 1.5}}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "mistral-head": ("mistral", {"head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma3": ("gemma3", {}),
    "gemma3-linear": ("gemma3", {"rope_parameters": GEMMA3}),
    "gemma3-cap": ("gemma3", {"final_logit_softcapping": 20.0}),
    "gemma3-whole": ("gemma3", {"layer_types": ["full_attention"] * 2, "num_hidden_layers": 2}),
    "phi3": ("phi3", {}),
    "phi3-part": ("phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "phi3-longrope": ("phi3", LONG),
    "gpt2": ("gpt2", {}),
    "gpt2-untied-inner": ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}),
    "bloom": ("bloom", {}),
    "bloom-odd-heads": ("bloom", {"hidden_size": 96, "n_head": 6}),
}
TOKENS = torch.randint(4, 600, (1, 150), generator=torch.Generator().manual_seed(2))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("name", MODELS)
def test_a_file_computes_what_its_folder_does(name, make_folder, tmp_path):
    family, changes = MODELS[name]
    folder = make_folder(family, tmp_path / "model", **changes)
    export_gguf(folder, tmp_path / "m.gguf", float_type="f32")
    wanted = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    found = logits(load_model(tmp_path / "m.gguf"))
    if family == "gemma3" or "yarn" in name or "longrope" in name:  # 1 + weight, and factors, rounded in the file
        assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    else:
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "phi3"])
def test_every_tensor_has_its_name_shape_and_rows_back(family, make_folder, tmp_path):
    export_gguf(make_folder(family, tmp_path / "model"), tmp_path / "m.gguf", float_type="f32")
    folder, model = ModelFolder(tmp_path / "model"), open_model(tmp_path / "m.gguf")
    names = {folder.own_name(name): name for name in model.files}
    assert names.keys() == folder.files.keys()
    for own, name in names.items():
        assert model.spec(name).shape == folder.spec(own).shape
        assert torch.equal(model.tensor(name), folder.tensor(own)), name
    for module, shape in structure_of_folder(folder.path).shapes.items():
        assert model.weight_shape(module) == shape
        assert torch.equal(model.weight(module), folder.weight(module))
    assert structure_of_folder(tmp_path / "m.gguf").shapes == structure_of_folder(folder.path).shapes


def test_a_split_file_is_one_model(make_folder, tmp_path):
    folder = make_folder("llama", tmp_path / "model")
    export_gguf(folder, tmp_path / "m.gguf", float_type="f32", split_max_size="100KiB")
    (first,) = tmp_path.glob("m-00001-of-*.gguf")
    wanted = logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())
    assert torch.equal(logits(load_model(first)), wanted)
    with pytest.raises(SQFTError, match="is part 2 of"):
        open_model(first.with_name(first.name.replace("00001", "00002", 1)))


@pytest.fixture(scope="module")
def llama_file(make_folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("llama-file")
    export_gguf(make_folder("llama", place / "model"), place / "m.gguf", float_type="f32")
    return place / "m.gguf"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"llama.expert_count": (4, "uint32")}, r"llama\.expert_count 4 in the file"),
        ({"llama.attention.clamp_kqv": (2.0, "float32")}, r"llama\.attention\.clamp_kqv 2\.0 in the file"),
        ({"llama.rope.scaling.attn_factor": (3.0, "float32")}, r"llama\.rope\.scaling\.attn_factor 3\.0 in the file"),
        ({"llama.attention.value_length": (8, "uint32")}, r"llama\.attention\.value_length 8 in the file"),
    ],
)
def test_a_hyper_parameter_that_transformers_lacks_is_refused_by_name(changes, words, llama_file, tmp_path):
    file = rewritten(llama_file, tmp_path / "changed.gguf", changes)
    with pytest.raises(UnsupportedArchitectureError, match=words) as caught:
        GGUFModel(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_what_other_converters_add_does_not_matter(llama_file, tmp_path):
    changes = {
        "general.basename": ("tiny", "string"),
        "llama.rope.scaling.factor": (1.0, "float32"),
        "llama.attention.causal": (True, "bool"),
        "llama.vocab_size": None,
        "sqft.exact": None,
    }
    model = GGUFModel(rewritten(llama_file, tmp_path / "changed.gguf", changes))
    assert torch.equal(logits(model.load()), logits(load_model(llama_file)))


def test_tensors_that_are_missing_or_left_over_are_named(llama_file, tmp_path):
    with pytest.raises(UnmappedTensorError, match=r"has no tensor blk\.1\.attn_k\.weight"):
        GGUFModel(rewritten(llama_file, tmp_path / "less.gguf", {}, without=["blk.1.attn_k.weight"]))
    more = {"blk.0.attn_q_norm.weight": torch.ones(4).numpy()}
    with pytest.raises(UnmappedTensorError, match=r"tensor blk\.0\.attn_q_norm\.weight .* has no place"):
        GGUFModel(rewritten(llama_file, tmp_path / "more.gguf", {}, more=more))


@pytest.mark.parametrize("factors", [torch.ones(4), torch.arange(1.0, 9.0)])  # of heads of 16: 8 are wanted
def test_factors_that_no_model_has_are_refused(factors, llama_file, tmp_path):
    with pytest.raises(UnsupportedArchitectureError, match=r"rope_freqs\.weight"):
        GGUFModel(rewritten(llama_file, tmp_path / "m.gguf", {}, more={"rope_freqs.weight": factors.numpy()}))


def test_an_architecture_without_a_table_is_refused(llama_file, tmp_path):
    rewritten(llama_file, tmp_path / "mamba.gguf", {}, "mamba")
    with pytest.raises(UnsupportedArchitectureError, match="is mamba, which has no table to read a file by"):
        GGUFModel(tmp_path / "mamba.gguf")


def test_a_file_that_is_replaced_is_opened_anew(make_folder, tmp_path):
    path = tmp_path / "m.gguf"
    export_gguf(make_folder("llama", tmp_path / "one"), path, float_type="f32")
    assert transformers_config(path).model_type == "llama"
    export_gguf(make_folder("qwen2", tmp_path / "two"), path, float_type="f32", overwrite=True)
    assert transformers_config(path).model_type == "qwen2"
