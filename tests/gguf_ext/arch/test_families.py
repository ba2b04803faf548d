"""Every architecture with a tiny random model: logits of the F32 file, bits of the INT4 one."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch
from helpers_arch import LLAMA3, YARN, difference

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.arch import find_architecture, known_architectures, read_config
from gguf_ext.arch.qwen import QWEN2
from gguf_ext.errors import UnsupportedArchitectureError
from gguf_ext.reader import GGUFFile
from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins import get_manager, hookimpl

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 256,
}
GEMMA3_YARN = {"full_attention": YARN, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
ROPES = {
    "yarn": YARN,
    "yarn-of-the-whole-context": {**YARN, "original_max_position_embeddings": None},
    "yarn-without-stretching": {**YARN, "factor": 1.0},
    "yarn-attention-factor": {**YARN, "attention_factor": 1.5},
    "yarn-mscale": {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5},
    "yarn-mscale-alone": {**YARN, "mscale": 2.0},
    "yarn-usual-betas": {**YARN, "beta_fast": 32, "beta_slow": 1.0},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "llama3": LLAMA3,
    "longrope": LONGROPE,
}
VARIANTS = {
    "mistral": ("mistral", {}),
    "mistral-head": ("mistral", {"head_dim": 32}),
    "mistral-window": ("mistral", {"sliding_window": 160}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}),
    "phi3": ("phi3", {}),
    "phi3-tied-partial": (
        "phi3",
        {"tie_word_embeddings": True, "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "gpt2": ("gpt2", {}),
    "gpt2-untied-inner": ("gpt2", {"tie_word_embeddings": False, "n_inner": 96}),
    "bloom": ("bloom", {}),
    "bloom-odd-heads": ("bloom", {"hidden_size": 96, "n_head": 6}),
}
NAMES = {"mistral": "llama"}


def _tokens(count):
    return torch.randint(4, 640, (count,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_an_f32_file_are_those_of_transformers(variant, make_folder, tmp_path):
    family, changes = VARIANTS[variant]
    model = make_folder(family, tmp_path / "model", **changes)
    report = export_gguf(model, tmp_path / "m.gguf", float_type="f32")
    assert report.architecture == NAMES.get(family, family)
    largest, divergence = difference(model, tmp_path / "m.gguf", _tokens(150))
    assert largest < 0.1
    assert divergence < 1e-5


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in ("llama", "mistral") for name in ROPES]
    + [(family, name) for family in ("qwen2", "qwen3") for name in ROPES if name not in ("llama3", "longrope")]
    + [("gemma3", "yarn"), ("gemma3", "linear")],
)
def test_every_kind_of_rotary_positions_gives_the_logits_of_transformers(family, name, make_folder, tmp_path):
    rope = {key: value for key, value in ROPES[name].items() if value is not None}
    whole = {**GEMMA3_YARN, "full_attention": dict(rope)} if family == "gemma3" else dict(rope)
    model = make_folder(family, tmp_path / "model", rope_parameters=whole, max_position_embeddings=512)
    export_gguf(model, tmp_path / "m.gguf", float_type="f32")
    largest, divergence = difference(model, tmp_path / "m.gguf", _tokens(200))
    gelu = family == "gemma3"  # through a table in fp16
    assert divergence < (1e-5 if gelu else 1e-10)
    assert largest < (0.1 if gelu else 1e-3)


def test_the_scaling_of_rotary_positions_is_compared(make_folder, tmp_path):
    model = make_folder("llama", tmp_path / "model", rope_parameters=dict(YARN))
    export_gguf(model, tmp_path / "m.gguf", float_type="f32")
    config = json.loads((model / "config.json").read_text())
    for changed, key in (
        ({**YARN, "factor": 8.0}, "llama.rope.scaling.factor"),
        ({**YARN, "original_max_position_embeddings": 128}, "llama.rope.scaling.original_context_length"),
        ({**YARN, "attention_factor": 1.5}, "llama.rope.scaling.attn_factor"),
        ({"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, "llama.rope.scaling.type"),
    ):
        (model / "config.json").write_text(json.dumps({**config, "rope_parameters": changed}))
        assert key in [item.name for item in verify_gguf(model, tmp_path / "m.gguf").differences]


@pytest.mark.parametrize(("tokens", "context"), [(200, 256), (300, 512)])
def test_longrope_has_its_factors_for_short_and_long_contexts(tokens, context, make_folder, tmp_path):
    changes = {"rope_parameters": LONGROPE, "max_position_embeddings": 1024, "original_max_position_embeddings": 256}
    model = make_folder("phi3", tmp_path / "model", **changes)
    export_gguf(model, tmp_path / "m.gguf", float_type="f32")
    factor = GGUFFile(tmp_path / "m.gguf").metadata["phi3.rope.scaling.attn_factor"]
    assert factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(256)))
    largest, divergence = difference(model, tmp_path / "m.gguf", _tokens(tokens), context)
    assert largest < 0.1
    assert divergence < 1e-5


# --- what is refused, and what a plug-in adds ---


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "apply_residual_connection_post_layernorm"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "use_sliding_window"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("phi3", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("qwen2", {"rope_parameters": LLAMA3}, "rope_type='llama3' has no table for qwen2: use one of default, linear"),
        ("mistral", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "beta_fast=16.0 of YaRN is fixed to 32"),
        ("llama", {"rope_parameters": {**YARN, "beta_slow": 2.0}}, "beta_slow=2.0 of YaRN is fixed to 1"),
        ("qwen3", {"rope_parameters": {**YARN, "truncate": False}}, "truncate=False of YaRN"),
        ("gemma3", {"rope_parameters": {**GEMMA3_YARN, "full_attention": {**YARN, "attention_factor": 1.5}}}, "mscale"),
    ],
)
def test_options_that_llama_cpp_lacks_are_refused(family, changes, words, tiny_model, tmp_path):
    tiny_model(family).config.save_pretrained(tmp_path)
    config = {**json.loads((tmp_path / "config.json").read_text()), **changes}
    if "layer_types" in config and "use_sliding_window" in changes:
        del config["layer_types"]  # transformers derives it
    config["architectures"] = [type(tiny_model(family)).__name__]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedArchitectureError, match=words):
        read_config(tmp_path, find_architecture(config, tmp_path))


def test_opt_is_refused_by_name(make_folder, tmp_path):
    make_folder("opt", tmp_path / "model")
    with pytest.raises(UnsupportedArchitectureError, match=r"is OPTForCausalLM: llama\.cpp has no OPT"):
        export_gguf(tmp_path / "model", tmp_path / "m.gguf")


class _Plugin:
    @hookimpl
    def sqft_gguf_architectures(self):
        return [dataclasses.replace(QWEN2, classes=("OtherForCausalLM",))]


def test_a_plug_in_adds_an_architecture(make_folder, tmp_path):
    model = make_folder("qwen2", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "architectures": ["OtherForCausalLM"]}))
    with pytest.raises(UnsupportedArchitectureError, match="OtherForCausalLM, which has no table here"):
        export_gguf(model, tmp_path / "m.gguf")
    manager, plugin = get_manager().manager, _Plugin()
    manager.register(plugin)
    try:
        assert export_gguf(model, tmp_path / "m.gguf").architecture == "qwen2"
    finally:
        manager.unregister(plugin)


def test_a_class_that_is_there_twice_is_an_error():
    class Twice:
        @hookimpl
        def sqft_gguf_architectures(self):
            return [QWEN2]

    manager, plugin = get_manager().manager, Twice()
    manager.register(plugin)
    try:
        with pytest.raises(SQFTError, match="two plug-ins offer 'Qwen2ForCausalLM'"):
            known_architectures()
    finally:
        manager.unregister(plugin)
