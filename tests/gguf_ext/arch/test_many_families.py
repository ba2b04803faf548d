"""Families whose table is a row of data, each with a tiny random model: the logits of its F32 file are transformers',
the file read back has the model's bits, and an INT4 file has the codes of its folder."""

from __future__ import annotations

import json

import pytest
import torch
from helpers_arch import LLAMA3, SHAPE, YARN, difference
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.arch import family, find_architecture, read_config
from gguf_ext.arch.family import TRAINING
from gguf_ext.errors import UnsupportedArchitectureError
from sqft_plugins.checkpoint import ModelFolder, open_model
from sqft_plugins.compress.quantize import quantize_folder

SHAPE = {**SHAPE, "vocab_size": 640, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
LLAMA3 = {**LLAMA3, "original_max_position_embeddings": 2048}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
WINDOW = {"sliding_window": 8, "num_hidden_layers": 4, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
ODD = {**WINDOW, "num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}
GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
FULL = {"layer_types": ["full_attention"] * 2}
HEAD = {"head_dim": 32}
HALF = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}
WHOLE = {**HALF, "partial_rotary_factor": 1.0}
G2 = {"query_pre_attn_scalar": 32, "sliding_window": 8, **HEAD}

MODELS = {
    "gemma": ("gemma", HEAD),
    "gemma-yarn": ("gemma", {**HEAD, "rope_parameters": YARN}),
    "gemma2": ("gemma2", G2),
    "gemma2-caps": ("gemma2", {**G2, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma2-odd": ("gemma2", {**G2, **ODD}),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}),
    "smollm3-untied-yarn": ("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": False, "rope_parameters": YARN}),
    "olmo": ("olmo", {"clip_qkv": 1.5}),
    "olmo-unclipped-tied": ("olmo", {"tie_word_embeddings": True}),
    "olmo2": ("olmo2", {}),
    "olmo2-linear": ("olmo2", {"rope_parameters": LINEAR}),
    "olmo3": ("olmo3", WINDOW),
    "olmo3-odd": ("olmo3", ODD),
    "granite": ("granite", GRANITE),
    "granite-biases-tied": (
        "granite",
        {**GRANITE, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "rope_parameters": LLAMA3},
    ),
    "cohere": ("cohere", {"logit_scale": 0.5}),
    "cohere2": ("cohere2", {**WINDOW, "head_dim": 16, "logit_scale": 0.3}),
    "glm": ("glm", {"head_dim": 16, "rope_parameters": HALF}),
    "glm4": ("glm4", {**HEAD, "rope_parameters": HALF}),
    "glm4-plain": ("glm4", {**HEAD, "attention_bias": False, "rope_parameters": WHOLE}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm-unbiased": ("stablelm", {"rope_parameters": HALF}),
    "phi2": ("phi", {}),
    "starcoder2": ("starcoder2", {}),
    "starcoder2-untied-window": ("starcoder2", {"tie_word_embeddings": False, "sliding_window": 160}),
    "gptneox": ("gpt_neox", {"hidden_act": "gelu_new"}),
    "gptneox-sequential": ("gpt_neox", {"hidden_act": "gelu_new", "use_parallel_residual": False}),
    "falcon": ("falcon", {"activation": "gelu_new"}),
    "falcon-groups-untied": (
        "falcon",
        {"activation": "gelu_new", "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1,
         "tie_word_embeddings": False, "ffn_hidden_size": 96},
    ),
    "falcon-every-head": ("falcon", {"activation": "gelu_new", "multi_query": False}),
    "nemotron": ("nemotron", {"head_dim": 16}),
    "nemotron-biases": ("nemotron", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    "exaone4": ("exaone4", {**FULL, "sliding_window": None}),
    "exaone4-32b": (
        "exaone4",
        {"num_hidden_layers": 64, "hidden_size": 32, "intermediate_size": 32, "sliding_window": 8,
         "rope_parameters": LLAMA3},
    ),
    "ernie": ("ernie4_5", HEAD),
    "ernie-untied": ("ernie4_5", {**HEAD, "tie_word_embeddings": False, "rope_parameters": LINEAR}),
    "hunyuan": ("hunyuan_v1_dense", HEAD),
    "seed-oss": ("seed_oss", HEAD),
    "seed-oss-tied": ("seed_oss", {**HEAD, "tie_word_embeddings": True, "attention_bias": False}),
    "arcee": ("arcee", {**HEAD, "rope_parameters": YARN}),
    "arcee-tied": ("arcee", {**HEAD, "tie_word_embeddings": True, "rope_parameters": LLAMA3}),
}  # fmt: skip
TOKENS = torch.randint(4, 640, (48,), generator=torch.Generator().manual_seed(2)).tolist()
ADDED = ("gemma", "nemotron")
"""Whose norms multiply by (1 + weight)."""


@pytest.fixture(scope="module")
def made(tiny_tokenizer, tmp_path_factory):
    """`made(variant)` → (folder, its F32 file, the report), made once."""
    found = {}

    def one(variant):
        if variant not in found:
            kind, changes = MODELS[variant]
            place = tmp_path_factory.mktemp("family")
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SHAPE, **changes}))
            for name, parameter in model.named_parameters():
                deep = model.config.num_hidden_layers > 8
                parameter.data = torch.randn_like(parameter) * (0.1 if deep else 0.2)
                if parameter.ndim == 1 and name.endswith("weight"):  # of sixteenths, so that 1 + weight is exact
                    parameter.data = (parameter * 16).round() / 16 + (0 if kind.startswith(ADDED) else 1)
            model.save_pretrained(place / "model")
            tiny_tokenizer("byte-level").save_pretrained(place / "model")
            report = export_gguf(place / "model", place / "m.gguf", float_type="f32")
            found[variant] = place / "model", place / "m.gguf", report
        return found[variant]

    return one


@pytest.mark.parametrize("variant", MODELS)
def test_logits_are_those_of_transformers(variant, made):
    folder, file, _ = made(variant)
    largest, divergence = difference(folder, file, TOKENS)
    assert abs(divergence) < 1e-6
    assert largest < 0.05


@pytest.mark.parametrize("variant", MODELS)
def test_a_file_read_as_a_model_has_the_bits_of_the_model(variant, made):
    """The table read backwards."""
    folder, file, report = made(variant)
    assert report.exact
    read, source = open_model(file), ModelFolder(folder)
    config = AutoConfig.from_pretrained(folder)
    assert read.transformers_config().model_type in (config.model_type, "olmo2")
    names = set(source.tensor_names)
    assert names - set(read.tensor_names) <= {"lm_head.weight"}
    for name in read.tensor_names:
        assert torch.equal(read.tensor(name), source.tensor(name)), name


@pytest.mark.parametrize("variant", [name for name in MODELS if name != "exaone4-32b"])
def test_int4_weights_are_those_of_the_folder(variant, made, tmp_path):
    folder, _, _ = made(variant)
    quantize_folder(folder, tmp_path / "int4", group_size=32)
    report = export_gguf(tmp_path / "int4", tmp_path / "m.gguf")
    assert report.exact
    source, read = ModelFolder(tmp_path / "int4"), open_model(tmp_path / "m.gguf")
    assert report.types["Q4_0"] == len(source.int4.modules)
    for module in source.int4.modules:
        wanted, found = source.quantized(module).dequantize(), read.tensor(f"{module}.weight")
        assert torch.equal(wanted.view(torch.int32), found.view(torch.int32)), module
    assert verify_gguf(tmp_path / "int4", tmp_path / "m.gguf").exact


# --- what is refused ---

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
REFUSED = [
    ("gemma", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("gemma", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention=True"),
    ("gemma2", {"query_pre_attn_scalar": 31}, "query_pre_attn_scalar=31 is fixed to 32"),
    ("gemma2", {"attn_logit_softcapping": None}, "attn_logit_softcapping=None"),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, "without sliding_attention"),
    ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}, "no_rope_layers"),
    ("smollm3", {"mlp_bias": True}, "mlp_bias=True"),
    ("olmo2", {"attention_bias": True}, "attention_bias=True"),
    ("olmo2", {"rope_parameters": DYNAMIC}, "rope_type='dynamic' has no table for olmo2"),
    ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings=True"),
    ("cohere", {"use_qk_norm": True}, "use_qk_norm=True"),
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm=True"),
    ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual=True"),
    ("starcoder2", {"use_bias": False}, "use_bias=False"),
    ("gptneox", {"attention_bias": False}, "attention_bias=False"),
    ("falcon", {"alibi": True}, "alibi=True"),
    ("falcon", {"parallel_attn": False}, "parallel_attn=False"),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2}, "num_ln_in_parallel_attn=2"),
    ("exaone4", {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, "with 64 layers alone"),
    ("ernie", {"use_bias": True}, "use_bias=True"),
    ("seed-oss", {"attention_out_bias": True}, "attention_out_bias=True"),
    ("hunyuan", {"rope_parameters": HALF}, "partial_rotary_factor has no table for hunyuan-dense"),
]


@pytest.mark.parametrize(("variant", "changes", "words"), REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(variant, changes, words, made, tmp_path):
    config = {**json.loads((made(variant)[0] / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitectureError, match=words):
        read_config(tmp_path, find_architecture(config, tmp_path))


COMMON = {*PretrainedConfig().to_dict(), "tie_word_embeddings", "head_dim", "_name_or_path", "output_attentions"}
BY_TENSORS = {"attention_bias", "mlp_bias", "use_qkv_bias", "use_parallel_residual"}
"""Told by tensors, or a switch whose every value is one or the other."""
DERIVED = {"partial_rotary_factor", "no_rope_layer_interval", "sliding_window_pattern", "sliding_window"}
DERIVED |= {"multi_query", "num_kv_heads", "intermediate_size", "num_key_value_heads"}
"""In another field as transformers has loaded them, or without effect beside it."""


@pytest.mark.parametrize("variant", [name for name in MODELS if "-" not in name or name == "seed-oss"])
def test_every_field_of_the_class_is_spoken_of(variant, made):
    """A value that no model has is refused, or stands in the file."""
    folder = made(variant)[0]
    table = find_architecture(json.loads((folder / "config.json").read_text()), folder)
    config = read_config(folder, table)

    def unread(field):
        strange = {**config, field: "strange"}
        try:
            return not table.reason(strange) and table.metadata(strange) == table.metadata(config)
        except (TypeError, ValueError, AttributeError, UnsupportedArchitectureError):  # it is computed with
            return False

    assert {
        field for field in config if field != "model_type" and unread(field)
    } <= COMMON | TRAINING | BY_TENSORS | DERIVED


def test_a_field_of_a_later_transformers_is_refused(made, monkeypatch):
    folder = made("olmo2")[0]
    table = find_architecture(json.loads((folder / "config.json").read_text()), folder)
    fields, aliases = family._declared("olmo2")
    monkeypatch.setattr(family, "_declared", lambda model_type: (fields | {"temperature_of_heads"}, aliases))
    config = dict(read_config(folder, table))
    assert not table.reason({**config, "temperature_of_heads": None})
    assert "temperature_of_heads=2.0 has no place in the table of olmo2" in table.reason(
        {**config, "temperature_of_heads": 2.0}
    )
