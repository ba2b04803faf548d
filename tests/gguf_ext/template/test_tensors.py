"""`--template-gguf`: models without a table, their tensors placed and ordered as in a file of the same base."""

from __future__ import annotations

import json
import re
import shutil

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from helpers_gguf import rewritten
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from gguf_ext import GGUFError, LlamaSession, export_gguf, verify_gguf
from gguf_ext.arch.rope import llama3_rope_factors
from gguf_ext.errors import DamagedFileError, TemplateError, UnmappedTensorError, UnsupportedArchitectureError
from gguf_ext.reader import GGUFFile
from gguf_ext.template.check import check_template
from gguf_ext.tokenizer.read import from_tokenizer
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.cli import main
from sqft_plugins.errors import CheckpointError

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
HEADS = {"q_proj": 4, "k_proj": 2}
GRANITE = {"attention_multiplier": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
GRANITE_KEYS = {"attention.scale": 0.2, "embedding_scale": 3.0, "residual_scale": 0.5, "logit_scale": 2.0}
GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}
GEMMA2_KEYS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "attention.sliding_window": 32}
GEMMA2_KEYS |= {"attention.key_length": 16, "attention.value_length": 16}
FAMILIES = {
    "olmo2": (Olmo2ForCausalLM, Olmo2Config, {}, {}),
    "granite": (GraniteForCausalLM, GraniteConfig, GRANITE, GRANITE_KEYS),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, GEMMA2, GEMMA2_KEYS),
    "starcoder2": (Starcoder2ForCausalLM, Starcoder2Config, {"use_bias": True}, {}),
}


def _rotary(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """llama.cpp's order, written out: rows i and i + half of a head become neighbours."""
    half = weight.shape[0] // heads // 2
    rows = [head * 2 * half + part * half + i for head in range(heads) for i in range(half) for part in range(2)]
    return weight[rows]


def as_converted(family: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as llama.cpp's own converter writes it."""
    kind = name.split(".")[-2]
    if family == "granite" and kind in HEADS:
        return _rotary(tensor, HEADS[kind])
    if family == "gemma2" and "norm" in name:
        return tensor + 1
    return tensor


def write_base(model, tokenizer, family, target, kind=gguf.GGMLQuantizationType.F32, without=(), more=()):
    """The base as llama.cpp's converter would have written it, matrices of the blocks as `kind`."""
    writer = gguf.GGUFWriter(target, family)
    config = model.config
    numbers = {"vocab_size": config.vocab_size, "context_length": 256, "embedding_length": 64, "block_count": 2}
    numbers |= {"feed_forward_length": 96, "attention.head_count": 4, "attention.head_count_kv": 2}
    numbers |= {"attention.layer_norm_rms_epsilon": float(getattr(config, "rms_norm_eps", 1e-5))}
    numbers |= {"attention.layer_norm_epsilon": float(getattr(config, "norm_epsilon", 1e-5))}
    numbers |= {"rope.freq_base": float(config.rope_parameters["rope_theta"]), **FAMILIES[family][3]}
    for key, value in numbers.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(f"{family}.{key}", value)
    writer.add_string("general.name", "the base")
    writer.add_string("general.license", "apache-2.0")
    writer.add_uint32("general.file_type", 0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    for key, value, sort in from_tokenizer(tokenizer, "x", {"vocab_size": config.vocab_size}).entries():
        items = {"strings": gguf.GGUFValueType.STRING, "ints": gguf.GGUFValueType.INT32}.get(sort)
        if items is None:
            writer.add_key_value(key, value, gguf.GGUFValueType[sort.upper()])
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=items)
    for name, tensor in model.state_dict().items():
        place = names.get_name(name, (".weight", ".bias"))
        if (name == "lm_head.weight" and config.tie_word_embeddings) or place in without:
            continue
        data = as_converted(family, name, tensor).contiguous().numpy()
        if data.ndim == 2 and place.startswith("blk."):
            writer.add_tensor(place, quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(place, data)
    for name, data in more:
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.fixture(scope="module")
def made(tiny_tokenizer, tmp_path_factory, make):
    """`made(family)`: (model, folder of the float model pruned to 50 %, its INT4 folder, base.gguf); made once."""
    found = {}

    def one(family):
        if family in found:
            return found[family]
        place = tmp_path_factory.mktemp(family)
        kind, config, changes, _ = FAMILIES[family]
        torch.manual_seed(0)
        special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        model = kind(config(vocab_size=640, **special, **{**SHAPE, **changes})).eval()
        for name, parameter in model.named_parameters():
            parameter.data = torch.randn_like(parameter) * (0.05 if "gemma2" in family and "norm" in name else 0.25)
            if parameter.ndim == 1 and "norm" in name and name.endswith("weight") and family != "gemma2":
                parameter.data += 1
        tokenizer = tiny_tokenizer("byte-level")
        base = write_base(model, tokenizer, family, place / "base.gguf")
        for folder in ("float", "whole"):
            tokenizer.save_pretrained(place / folder)
        model.save_pretrained(place / "whole")
        for name, parameter in model.named_parameters():
            if "layers" in name and parameter.ndim == 2:
                parameter.data[torch.rand_like(parameter) < 0.5] = 0
        model.save_pretrained(place / "float")
        whole = ModelFolder(place / "whole")
        for name in whole.files:
            model.get_parameter(name).data = whole.tensor(name)
        found[family] = (model, place / "float", _int4(place, make), base)
        return found[family]

    return one


def _int4(place, make):
    """`make["int4"]` knows Llama's names: those of Starcoder2 are others."""
    folder = place / "int4"
    names = [name for name in ModelFolder(place / "whole").files if "_proj.weight" in name]
    assert names
    make["int4"](place / "whole", folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, made, tmp_path):
    _, folder, _, base = made(family)
    with pytest.raises(UnsupportedArchitectureError, match="has no table here"):
        export_gguf(folder, tmp_path / "m.gguf")
    report = export_gguf(folder, tmp_path / "m.gguf", template_gguf=base, float_type="f32")
    assert report.architecture == family
    tokens = torch.randint(4, 640, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        reference = loaded(torch.tensor([tokens])).logits[0]
    with LlamaSession(tmp_path / "m.gguf", threads=1, kv_type="f32", flash_attention=False) as session:
        logits = torch.cat([chunk.clone() for chunk in session.logits(tokens)])
    p, q = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    assert float((reference - logits).abs().max()) < 0.1
    assert float((p.exp() * (p - q)).sum(-1).mean()) < 1e-5
    assert verify_gguf(folder, tmp_path / "m.gguf").exact


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_int4_is_exact_whatever_the_type_of_the_template(family, kind, made, tiny_tokenizer, tmp_path):
    model, _, folder, _ = made(family)
    kind = gguf.GGMLQuantizationType[kind]
    base = write_base(model, tiny_tokenizer("byte-level"), family, tmp_path / "base.gguf", kind)
    report = export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], 2)
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    read = ModelFolder(folder)
    for module in read.int4.modules:
        tensor = tensors[f"{names.get_name(module)}.weight"]
        weight, mask = read.quantized(module).dequantize(), read.mask(module)
        wanted, mask = (as_converted(family, f"{module}.weight", part) for part in (weight, mask))
        found = quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(found.view(np.uint32), wanted.numpy().view(np.uint32))
        assert not found[~mask.numpy()].any()
    assert report.types["Q4_0"] == len(read.int4.modules)
    assert report.exact
    assert report.pruned > 0


def test_metadata_is_the_templates_but_for_what_is_about_the_weights(made, tmp_path):
    _, _, folder, base = made("olmo2")
    export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    ours, theirs = GGUFFile(tmp_path / "m.gguf"), GGUFFile(base)
    changed = {key for key in theirs.metadata if ours.metadata.get(key) != theirs.metadata[key]}
    assert changed == {"general.name", "general.file_type"}
    assert ours.metadata["general.license"] == "apache-2.0"
    assert ours.metadata["general.file_type"] == 2
    assert ours.metadata["sqft.pipeline"] == ["magnitude", "round-to-nearest"]
    assert all(ours.kinds[key] == kind for key, kind in theirs.kinds.items())


def test_a_model_with_a_table_takes_only_the_tokenizer(llama_int4, tmp_path):
    export_gguf(llama_int4, tmp_path / "base.gguf")
    bare = tmp_path / "bare"
    shutil.copytree(llama_int4, bare, ignore=shutil.ignore_patterns("token*", "chat*", "special*"))
    report = export_gguf(bare, tmp_path / "m.gguf", template_gguf=tmp_path / "base.gguf")
    assert report.tokenizer == "gpt2/llama-bpe"
    assert verify_gguf(bare, tmp_path / "m.gguf").exact
    one, other = (GGUFFile(tmp_path / name).metadata for name in ("base.gguf", "m.gguf"))
    assert {key: one[key] for key in one if key.startswith("tokenizer.")} == {
        key: other[key] for key in other if key.startswith("tokenizer.")
    }


# --- what is refused ---


def test_another_base_is_refused(made, tiny_tokenizer, tmp_path):
    model, _, folder, _ = made("olmo2")
    other = Olmo2ForCausalLM(model.config).eval()
    base = write_base(other, tiny_tokenizer("byte-level"), "olmo2", tmp_path / "base.gguf")
    with pytest.raises(TemplateError, match=r"does not look like .* \(cosine .*it is of another base"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    assert not (tmp_path / "m.gguf").exists()


def _changed_base(made, tokenizer, tmp_path, change):
    """A base.gguf whose model was changed by `change(state)`."""
    model, _, folder, _ = made("olmo2")
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed = Olmo2ForCausalLM(model.config).eval()
    change(state)
    changed.load_state_dict(state)
    return folder, write_base(changed, tokenizer, "olmo2", tmp_path / "base.gguf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["model.layers.1.mlp.up_proj.weight"].copy_(s["model.layers.1.mlp.up_proj.weight"].flip(0)), "up"),
        (lambda s: s["model.layers.1.mlp.up_proj.weight"].mul_(2), "factor 0.5"),
        (lambda s: s["model.layers.0.self_attn.q_proj.weight"].neg_(), "attn_q"),
        (lambda s: s["model.norm.weight"].mul_(1.1), "is not output_norm.weight"),
        (lambda s: s["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")), "cosine 0.00"),
    ],
)
def test_a_tensor_that_llama_cpp_would_keep_in_another_form_is_refused(change, words, made, tiny_tokenizer, tmp_path):
    folder, base = _changed_base(made, tiny_tokenizer("byte-level"), tmp_path, change)
    with pytest.raises(TemplateError, match=words):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)


def test_tensors_that_only_one_of_both_has_are_refused(made, tiny_tokenizer, tmp_path):
    model, _, folder, _ = made("olmo2")
    tokenizer = tiny_tokenizer("byte-level")
    base = write_base(model, tokenizer, "olmo2", tmp_path / "a.gguf", without=["blk.1.ffn_up.weight"])
    with pytest.raises(UnmappedTensorError, match=r"has blk\.1\.ffn_up\.weight, which the template has not"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    more = [("blk.0.ffn_gate_inp.weight", np.ones((4, 64), np.float32))]
    base = write_base(model, tokenizer, "olmo2", tmp_path / "b.gguf", more=more)
    with pytest.raises(TemplateError, match=r"has blk\.0\.ffn_gate_inp\.weight, for which the model has no tensor"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)


def test_factors_of_rotary_frequencies_are_those_of_the_configuration(made, tiny_tokenizer, tmp_path):
    model, folder, _, _ = made("olmo2")
    tokenizer = tiny_tokenizer("byte-level")
    factors = np.linspace(1, 2, 8, dtype=np.float32)
    base = write_base(model, tokenizer, "olmo2", tmp_path / "c.gguf", more=[("rope_freqs.weight", factors)])
    with pytest.raises(TemplateError, match=r"rope_freqs\.weight: is not what rope_parameters in config\.json make"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    settings = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 64, **settings}
    scaled = _configured(folder, tmp_path / "scaled", {"rope_parameters": rope})
    with pytest.raises(TemplateError, match=r"rope_freqs\.weight: is not what"):
        export_gguf(scaled, tmp_path / "m.gguf", template_gguf=base)
    right = llama3_rope_factors(16, rope).numpy()
    base = write_base(model, tokenizer, "olmo2", tmp_path / "d.gguf", more=[("rope_freqs.weight", right)])
    export_gguf(scaled, tmp_path / "m.gguf", template_gguf=base)
    np.testing.assert_array_equal(GGUFFile(tmp_path / "m.gguf").dequantize("rope_freqs.weight")[0], right)


# --- config.json and the template ---

OTHERS = [
    ("olmo2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "olmo2.rope.freq_base"),
    ("olmo2", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, "olmo2.rope.scaling.fac"),
    ("olmo2", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}, "rope_parameters"),
    ("olmo2", {"rms_norm_eps": 1e-3}, "olmo2.attention.layer_norm_rms_epsilon"),
    ("olmo2", {"hidden_act": "gelu"}, "hidden_act"),
    ("olmo2", {"num_attention_heads": 2}, "olmo2.attention"),
    ("olmo2", {"max_position_embeddings": 128}, "olmo2.context_length"),
    ("granite", {"attention_multiplier": 0.7}, "granite.attention.scale"),
    ("granite", {"embedding_multiplier": 1.0}, "granite.embedding_scale"),
    ("granite", {"residual_multiplier": 0.25}, "granite.residual_scale"),
    ("granite", {"logits_scaling": 8.0}, "granite.logit_scale"),
    ("gemma2", {"attn_logit_softcapping": 20.0}, "gemma2.attn_logit_softcapping"),
    ("gemma2", {"attn_logit_softcapping": None}, "gemma2.attn_logit_softcapping"),
    ("gemma2", {"final_logit_softcapping": None}, "gemma2.final_logit_softcapping"),
    ("gemma2", {"sliding_window": 8}, "gemma2.attention.sliding_window"),
    ("gemma2", {"layer_types": ["full_attention"] * 2}, "gemma2.attention.sliding_window"),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "gemma2.attention.sliding_window_pattern"),
    ("gemma2", {"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("starcoder2", {"norm_epsilon": 1e-3}, "starcoder2.attention.layer_norm_epsilon"),
    ("starcoder2", {"hidden_act": "gelu"}, "hidden_act"),
]


@pytest.mark.parametrize(
    ("family", "changes", "key"), OTHERS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_configuration_that_says_otherwise_is_refused(family, changes, key, made, tmp_path):
    _, folder, _, base = made(family)
    explicit = {name: "null" if value is None else value for name, value in changes.items()}
    model = _configured(folder, tmp_path / "model", explicit)
    with pytest.raises(TemplateError, match=rf"is not of this model's base: {re.escape(key)}"):
        export_gguf(model, tmp_path / "m.gguf", template_gguf=base)
    assert not (tmp_path / "m.gguf").exists()
    export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    report = verify_gguf(model, tmp_path / "m.gguf")
    assert not report.ok
    assert any(item.name.startswith(key) for item in report.differences)


def test_a_key_of_the_template_that_the_configuration_lacks_is_refused(made, tmp_path):
    _, folder, _, base = made("olmo2")
    for name, value, kind in (
        ("rope.scaling.attn_factor", 1.5, "float32"),
        ("attention.scale", 0.7, "float32"),
        ("attention.causal", False, "bool"),
        ("attention.sliding_window", 16, "uint32"),
        ("expert_count", 4, "uint32"),
    ):
        other = rewritten(base, tmp_path / "other.gguf", {f"olmo2.{name}": (value, kind)})
        with pytest.raises(TemplateError, match=rf"olmo2\.{name}"):
            export_gguf(folder, tmp_path / "m.gguf", template_gguf=other)
    other = rewritten(base, tmp_path / "other.gguf", {"olmo2.of_a_later_release": (4, "uint32")})
    report = export_gguf(folder, tmp_path / "m.gguf", template_gguf=other)
    assert report.unchecked == ["olmo2.of_a_later_release"]


def test_a_graph_that_nobody_compared_is_named(made, tiny_tokenizer, tmp_path):
    """SmolLM3 has OLMo's tensors but for the norms; here only what is said of a file without any weight counts."""
    _, folder, _, base = made("olmo2")
    model = _configured(folder, tmp_path / "model", {"layer_types": ["full_attention"] * 2})
    read = GGUFFile(base)
    read.metadata = {key.replace("olmo2.", "exaone4."): value for key, value in read.metadata.items()}
    read.metadata["general.architecture"] = "exaone4"
    checked = check_template(ModelFolder(model), read)
    assert checked.unchecked[0] == "llama.cpp's graph of exaone4"
    assert checked.differences == []
    model = _configured(folder, tmp_path / "window", {"model_type": "exaone4", "sliding_window": 16})
    assert "sliding_window" in [key for key, _ in check_template(ModelFolder(model), read).differences]


def test_what_changes_nothing_is_no_difference_and_what_nobody_knows_is_named(made, tmp_path, capsys):
    _, folder, _, base = made("olmo2")
    harmless = {"attention_dropout": 0.3, "initializer_range": 0.5, "use_cache": False, "torch_dtype": "float16"}
    model = _configured(folder, tmp_path / "model", {**harmless, "a_note": "of the trainer"})
    assert export_gguf(model, tmp_path / "m.gguf", template_gguf=base).unchecked == []
    strange = {"architectures": ["OddForCausalLM"], "model_type": "odd", "odd_scale": 3.0}
    model = _configured(folder, tmp_path / "odd", strange)
    report = export_gguf(model, tmp_path / "o.gguf", template_gguf=base)
    assert report.unchecked == ["config.json: odd_scale"]
    assert "compared with nothing, so look at them yourself: config.json: odd_scale" in capsys.readouterr().err
    found = verify_gguf(model, tmp_path / "o.gguf")
    assert found.ok
    assert found.unchecked == report.unchecked
    with pytest.raises(SystemExit) as done:
        main(["verify", str(model), str(tmp_path / "o.gguf")])
    assert done.value.code == 0
    assert "compared with nothing: config.json: odd_scale" in capsys.readouterr().out
    model = _configured(model, tmp_path / "other", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}})
    with pytest.raises(TemplateError, match=r"olmo2\.rope\.freq_base"):
        export_gguf(model, tmp_path / "p.gguf", template_gguf=base)


def test_values_that_are_none_are_one_line(made, tmp_path):
    _, folder, _, base = made("olmo2")
    other = rewritten(base, tmp_path / "other.gguf", {"olmo2.context_length": ("many", "string")})
    with pytest.raises(TemplateError, match="context_length='many', which is no number"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=other)
    strange = {"architectures": ["OddForCausalLM"], "model_type": "odd"}
    for field, value in (("sliding_window", "wide"), ("rope_parameters", {"rope_theta": "x"}), ("hidden_size", "x")):
        model = _configured(folder, tmp_path / field, {**strange, field: value})
        with pytest.raises(CheckpointError, match=r"config\.json of model .* cannot be compared"):
            export_gguf(model, tmp_path / "m.gguf", template_gguf=base)


def test_a_window_that_the_graph_lacks_ends_the_context(made, tmp_path):
    _, folder, _, base = made("starcoder2")
    model = _configured(folder, tmp_path / "model", {"sliding_window": 40})
    report = export_gguf(model, tmp_path / "m.gguf", template_gguf=base)
    assert GGUFFile(report.path).metadata["starcoder2.context_length"] == 40
    assert verify_gguf(model, report.path).exact
    assert [item.name for item in verify_gguf(model, base).differences][:1] == ["starcoder2.context_length"]


def test_a_tokenizer_that_is_not_the_models_is_refused(made, tmp_path):
    _, folder, _, base = made("olmo2")
    tokens = list(GGUFFile(base).metadata["tokenizer.ggml.tokens"])
    tokens[300], tokens[301] = tokens[301], tokens[300]
    other = rewritten(base, tmp_path / "other.gguf", {"tokenizer.ggml.tokens": (tokens, "strings")})
    with pytest.raises(TemplateError, match=r"tokenizer\.ggml\.tokens: 2 differ"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=other)


def test_a_foreign_tensor_of_the_model_is_named(made, tmp_path):
    _, _, folder, base = made("olmo2")
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file({**load_file(file), "model.vision.weight": torch.ones(2, 2)}, file, metadata={"format": "pt"})
    with pytest.raises(UnmappedTensorError, match=r"tensor model\.vision\.weight of model .* has no place"):
        export_gguf(tmp_path / "model", tmp_path / "m.gguf", template_gguf=base)


def test_a_template_of_another_architecture_or_size_is_refused(made, llama, gemma3, tmp_path):
    _, _, folder, base = made("olmo2")
    export_gguf(gemma3, tmp_path / "gemma3.gguf")
    with pytest.raises(GGUFError, match=r"which the template has not|does not look like|is .* in template"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=tmp_path / "gemma3.gguf")
    with pytest.raises(TemplateError, match=r"has 640 tokens, the model \d+ rows in its embedding"):
        export_gguf(llama, tmp_path / "m.gguf", template_gguf=base)
    with pytest.raises(GGUFError, match="--pre gpt-2: the template has a tokenizer"):
        export_gguf(llama, tmp_path / "m.gguf", template_gguf=base, pre="gpt-2")
    with pytest.raises(GGUFError, match="is not a file"):
        export_gguf(llama, tmp_path / "m.gguf", template_gguf=tmp_path / "none.gguf")
    (tmp_path / "bad.gguf").write_bytes(base.read_bytes()[:5000])
    with pytest.raises(DamagedFileError):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=tmp_path / "bad.gguf")


# --- a class that has a table ---

REFUSED = {
    "a window": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
    "an activation": ("llama", {"hidden_act": "gelu"}),
    "a rope": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "half of each head": ("qwen3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}),
    "biases": ("qwen3", {"attention_bias": True}),
    "a scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "a residual": ("bloom", {"apply_residual_connection_post_layernorm": True}),
    "a cap": ("gemma", {"attn_logit_softcapping": 50.0}),
}


def _configured(source, folder, changes):
    """A copy of a model folder whose config.json says otherwise; None removes an entry, "null" says null."""
    shutil.copytree(source, folder)
    config = {**json.loads((folder / "config.json").read_text()), **changes}
    if "use_sliding_window" in changes:
        config.pop("layer_types", None)  # transformers derives it
    (folder / "config.json").write_text(
        json.dumps({k: None if v == "null" else v for k, v in config.items() if v is not None})
    )
    return folder


@pytest.fixture(scope="module")
def bases(tiny_model, tiny_tokenizer, gemma3, tmp_path_factory):
    """`bases(family)` → (folder, its file), made once."""
    found = {}

    def base(family):
        if family not in found:
            place = tmp_path_factory.mktemp(family)
            folder = gemma3 if family == "gemma" else place / "model"
            if family != "gemma":
                tiny_model(family).save_pretrained(folder)
                tiny_tokenizer("byte-level").save_pretrained(folder)
            if family != "opt":
                export_gguf(folder, place / "m.gguf")
            found[family] = folder, place / "m.gguf"
        return found[family]

    return base


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("architectures", [..., None, ["OfAnotherName"]], ids=["its class", "none", "another"])
def test_what_a_table_refuses_no_template_lets_in(what, architectures, bases, tmp_path):
    """Neither the export nor `verify` takes the file of a base for a model that computes something else, whatever
    class the folder says it has."""
    family, changes = REFUSED[what]
    base, file = bases(family)
    named = {} if architectures is ... else {"architectures": architectures}
    model = _configured(base, tmp_path / "model", {**changes, **named})
    with pytest.raises(UnsupportedArchitectureError):
        export_gguf(model, tmp_path / "m.gguf", template_gguf=file)
    with pytest.raises(UnsupportedArchitectureError):
        verify_gguf(model, file)
    assert not (tmp_path / "m.gguf").exists()


def test_a_class_that_llama_cpp_lacks_takes_no_template(bases, tmp_path):
    folder, _ = bases("opt")
    with pytest.raises(UnsupportedArchitectureError, match=r"llama\.cpp has no OPT"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=bases("llama")[1])


def test_a_type_alone_finds_the_table_and_two_that_differ_are_refused(bases, tmp_path):
    base, file = bases("llama")
    assert verify_gguf(_configured(base, tmp_path / "typed", {"architectures": None}), file).exact
    other = _configured(base, tmp_path / "other", {"model_type": "mistral"})
    with pytest.raises(UnsupportedArchitectureError, match=r"LlamaForCausalLM by its arch.* MistralForCausalLM by its"):
        verify_gguf(other, file)
