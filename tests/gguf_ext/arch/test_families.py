"""Every architecture with a tiny random model: logits of the F32 file, bits of the INT4 one."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map, quants
from helpers_gptq import write_gptq
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from gguf_ext import LlamaSession, export_gguf, verify_gguf
from gguf_ext.arch import find_architecture, known_architectures, read_config
from gguf_ext.arch.qwen import QWEN2
from gguf_ext.errors import UnmappedTensorError, UnsupportedArchitectureError
from gguf_ext.reader import GGUFFile
from gguf_ext.write.estimate import estimate_gguf
from sqft_plugins.checkpoint import GridStamp, ModelFolder
from sqft_plugins.checkpoint.compact_convert import compact_folder
from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins import get_manager, hookimpl

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.3, 1.4, 1.5, 1.6, 1.8, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0],
    "original_max_position_embeddings": 256,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
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


@pytest.fixture(scope="module")
def make_folder(tiny_model, tiny_tokenizer):
    """`make_folder(family, folder, **config changes)`: weights and biases large enough that logits tell a wrong place
    from a right one."""

    def make(family, folder, **changes):
        model = tiny_model(family, **changes)
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * 0.25
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.data += 1
        model.save_pretrained(folder)
        tiny_tokenizer("byte-level").save_pretrained(folder)
        return folder

    return make


def _difference(model, file, tokens, context=256):
    """(max |dlogit|, mean KL) of llama.cpp against transformers, both in fp32."""
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
        reference = loaded(torch.tensor([tokens])).logits[0]
    with LlamaSession(file, threads=1, kv_type="f32", flash_attention=False, context=context) as session:
        logits = torch.cat([chunk.clone() for chunk in session.logits(tokens)])
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    return float((reference - logits).abs().max()), float((p.exp() * (p - q)).sum(-1).mean())


def _tokens(count):
    return torch.randint(4, 640, (count,), generator=torch.Generator().manual_seed(2)).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_an_f32_file_are_those_of_transformers(variant, make_folder, tmp_path):
    family, changes = VARIANTS[variant]
    model = make_folder(family, tmp_path / "model", **changes)
    report = export_gguf(model, tmp_path / "m.gguf", float_type="f32")
    assert report.architecture == NAMES.get(family, family)
    largest, divergence = _difference(model, tmp_path / "m.gguf", _tokens(150))
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
    largest, divergence = _difference(model, tmp_path / "m.gguf", _tokens(200))
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
    largest, divergence = _difference(model, tmp_path / "m.gguf", _tokens(tokens), context)
    assert largest < 0.1
    assert divergence < 1e-5


# --- INT4, to the bit ---

INT4_FAMILIES = ("mistral", "qwen2", "qwen3", "phi3", "gpt2", "bloom")


@pytest.fixture(scope="module")
def make_int4(make_folder, tmp_path_factory):
    """`make_int4(family, symmetric)`: a tiny model pruned and quantized by the verbs themselves; made once."""
    made = {}

    def make(family, symmetric=True):
        if (family, symmetric) not in made:
            place = tmp_path_factory.mktemp(family)
            make_folder(family, place / "float")
            prune_folder(place / "float", place / "pruned", method="magnitude")
            quantize_folder(place / "pruned", place / "int4", symmetric=symmetric)
            made[family, symmetric] = place / "int4"
        return made[family, symmetric]

    return make


def _naive_rows(family, module, heads):
    """The order of the rows in the file, written out; None where it is the checkpoint's."""
    if family in ("llama", "mistral") and module.endswith(("q_proj", "k_proj")):
        count, width = heads[module.endswith("k_proj")], 16
        return [head * width + half * 8 + i for head in range(count) for i in range(8) for half in range(2)]
    if family == "bloom" and module.endswith("query_key_value"):
        return [(head * 3 + part) * 16 + i for part in range(3) for head in range(heads[0]) for i in range(16)]
    return None


def _assert_bits(family, model, file, architecture):
    """Each INT4 module stands under the name that the gguf package gives it; dequantized by that package it is fp32
    scale * (code - zero_point), and 0 where the mask prunes."""
    folder = ModelFolder(model)
    names = get_tensor_name_map(MODEL_ARCH[architecture.upper()], 2)
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    kinds, seen = set(), set()
    for module in folder.int4.modules:
        tensor = tensors[f"{names.get_name(module)}.weight"]
        wanted, mask = folder.quantized(module).dequantize(), folder.mask(module)
        rows = _naive_rows(family, module, (4, 2))
        if rows is not None:
            wanted, mask = wanted[rows], None if mask is None else mask[rows]
        found = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.numpy().view(np.uint32))
        assert mask is None or not found[~mask.numpy()].any()
        kinds.add(tensor.tensor_type.name)
        seen.add(tensor.name)
    assert len(seen) == len(folder.int4.modules) > 0
    return kinds


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("family", INT4_FAMILIES)
def test_int4_is_exact(family, symmetric, make_int4, tmp_path):
    model = make_int4(family, symmetric)
    report = export_gguf(model, tmp_path / "m.gguf")
    assert _assert_bits(family, model, tmp_path / "m.gguf", report.architecture) == {"Q4_0" if symmetric else "Q5_0"}
    assert report.pruned > 0
    verified = verify_gguf(model, tmp_path / "m.gguf")
    assert verified.ok
    assert verified.equal == verified.tensors


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_the_compact_form_gives_the_very_same_file(family, make_int4, tmp_path):
    model = make_int4(family)
    compact_folder(model, tmp_path / "int4")
    export_gguf(model, tmp_path / "a.gguf")
    export_gguf(tmp_path / "int4", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_compact_form_with_masked_float_layers_gives_the_very_same_file(make_folder, tmp_path):
    prune_folder(make_folder("llama", tmp_path / "float"), tmp_path / "pruned", method="magnitude")
    quantize_folder(tmp_path / "pruned", tmp_path / "int4", exclude=["down_proj"])
    compact_folder(tmp_path / "int4", tmp_path / "compact" / "int4")
    one = export_gguf(tmp_path / "int4", tmp_path / "a.gguf")
    other = export_gguf(tmp_path / "compact" / "int4", tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert one.pruned == other.pruned == sum(int((~mask).sum()) for mask in _masks(tmp_path / "int4"))


def _masks(path):
    folder = ModelFolder(path)
    return [folder.mask(module) for module in folder.masks]


@pytest.mark.parametrize(("version", "symmetric"), [(1, True), (2, False)])
def test_autogptq_folders_are_exact_and_their_biases_of_zeros_left_out(
    version, symmetric, make_folder, tmp_path, capsys
):
    make_folder("mistral", tmp_path / "float")
    written = write_gptq(tmp_path / "float", tmp_path / "gptq", symmetric=symmetric, version=version)
    file = tmp_path / "gptq" / "model.safetensors"
    biases = {f"{module}.bias": torch.zeros(len(weight.codes)) for module, weight in written.items()}
    save_file({**load_file(file), **biases}, file)
    report = export_gguf(tmp_path / "gptq", tmp_path / "m.gguf")
    assert f"{len(written)} biases of INT4 layers are all 0" in capsys.readouterr().err
    assert sum(report.types[kind] for kind in ("Q4_0", "Q5_0") if kind in report.types) == len(written)
    assert _assert_bits("mistral", tmp_path / "gptq", tmp_path / "m.gguf", "llama") == {"Q4_0" if symmetric else "Q5_0"}
    save_file({**load_file(file), next(iter(biases)): torch.ones_like(next(iter(biases.values())))}, file)
    with pytest.raises(UnmappedTensorError, match=r"\.bias of model .* has no place in a llama file"):
        export_gguf(tmp_path / "gptq", tmp_path / "n.gguf")


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_a_folder_of_the_bare_body_gives_the_very_same_file(family, make_folder, tmp_path):
    whole = make_folder(family, tmp_path / "whole" / "model")
    bare = tmp_path / "bare" / "model"
    shutil.copytree(whole, bare)
    tensors = load_file(bare / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if family == "gpt2":
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 256, 256).tril()  # the causal mask, in older checkpoints
    save_file(tensors, bare / "model.safetensors", metadata={"format": "pt"})
    export_gguf(whole, tmp_path / "a.gguf")
    export_gguf(bare, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    prune_folder(bare, tmp_path / "pruned", method="magnitude")  # masks have the whole names
    report = export_gguf(tmp_path / "pruned", tmp_path / "c.gguf")
    assert report.pruned == sum(int((~ModelFolder(tmp_path / "pruned").mask(m)).sum()) for m in _masked(tmp_path))
    assert report.pruned > 0


def _masked(place):
    return ModelFolder(place / "pruned").masks


@pytest.mark.parametrize("family", INT4_FAMILIES)
def test_the_estimate_is_the_file(family, make_int4, tmp_path):
    source = make_int4(family).parent / "pruned"
    modules = ModelFolder(make_int4(family)).int4.modules
    told = estimate_gguf(source, modules, GridStamp(group_size=32, symmetric=True))
    report = export_gguf(make_int4(family), tmp_path / "m.gguf")
    assert told["types"].get("Q4_0") == report.types["Q4_0"] == len(modules)
    assert report.bytes <= told["bytes"] + 1024


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
