"""config.json and the template: what they say otherwise is refused, what nobody compares is named."""

from __future__ import annotations

import re

import numpy as np
import pytest
from helpers_gguf import rewritten
from helpers_template import configured, write_base

from gguf_ext import export_gguf, verify_gguf
from gguf_ext.arch.rope import llama3_rope_factors
from gguf_ext.errors import TemplateError
from gguf_ext.reader import GGUFFile
from gguf_ext.template import check
from gguf_ext.template.check import check_template
from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.cli import main
from sqft_plugins.errors import CheckpointError


def test_factors_of_rotary_frequencies_are_those_of_the_configuration(made, tiny_tokenizer, tmp_path):
    model, folder, _, _ = made("olmo2")
    tokenizer = tiny_tokenizer("byte-level")
    factors = np.linspace(1, 2, 8, dtype=np.float32)
    base = write_base(model, tokenizer, "olmo2", tmp_path / "c.gguf", more=[("rope_freqs.weight", factors)])
    with pytest.raises(TemplateError, match=r"rope_freqs\.weight: is not what rope_parameters in config\.json make"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=base)
    settings = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope = {"rope_theta": 1e4, "original_max_position_embeddings": 64, **settings}
    scaled = configured(folder, tmp_path / "scaled", {"rope_parameters": rope})
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
    model = configured(folder, tmp_path / "model", explicit)
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


def test_a_graph_that_nobody_compared_is_named(made, monkeypatch, tmp_path):
    """SmolLM3 has OLMo's tensors but for the norms; here only what is said of a file without any weight counts."""
    _, folder, _, base = made("olmo2")
    model = configured(folder, tmp_path / "model", {"layer_types": ["full_attention"] * 2})
    read = GGUFFile(base)
    read.metadata = {key.replace("olmo2.", "exaone4."): value for key, value in read.metadata.items()}
    read.metadata["general.architecture"] = "exaone4"
    with monkeypatch.context() as patch:  # as one without a table
        patch.setattr(check, "SEEN", check.SEEN - {"exaone4"})
        checked = check_template(ModelFolder(model), read)
    assert checked.unchecked[0] == "llama.cpp's graph of exaone4"
    assert checked.differences == []
    model = configured(folder, tmp_path / "window", {"model_type": "exaone4", "sliding_window": 16})
    assert "sliding_window" in [key for key, _ in check_template(ModelFolder(model), read).differences]


def test_what_changes_nothing_is_no_difference_and_what_nobody_knows_is_named(made, tmp_path, capsys):
    _, folder, _, base = made("olmo2")
    harmless = {"attention_dropout": 0.3, "initializer_range": 0.5, "use_cache": False, "torch_dtype": "float16"}
    model = configured(folder, tmp_path / "model", {**harmless, "a_note": "of the trainer"})
    assert export_gguf(model, tmp_path / "m.gguf", template_gguf=base).unchecked == []
    strange = {"architectures": ["OddForCausalLM"], "model_type": "odd", "odd_scale": 3.0}
    model = configured(folder, tmp_path / "odd", strange)
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
    model = configured(model, tmp_path / "other", {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}})
    with pytest.raises(TemplateError, match=r"olmo2\.rope\.freq_base"):
        export_gguf(model, tmp_path / "p.gguf", template_gguf=base)


def test_values_that_are_none_are_one_line(made, tmp_path):
    _, folder, _, base = made("olmo2")
    other = rewritten(base, tmp_path / "other.gguf", {"olmo2.context_length": ("many", "string")})
    with pytest.raises(TemplateError, match="context_length='many', which is no number"):
        export_gguf(folder, tmp_path / "m.gguf", template_gguf=other)
    strange = {"architectures": ["OddForCausalLM"], "model_type": "odd"}
    for field, value in (("sliding_window", "wide"), ("rope_parameters", {"rope_theta": "x"}), ("hidden_size", "x")):
        model = configured(folder, tmp_path / field, {**strange, field: value})
        with pytest.raises(CheckpointError, match=r"config\.json of model .* cannot be compared"):
            export_gguf(model, tmp_path / "m.gguf", template_gguf=base)


def test_a_window_that_the_graph_lacks_ends_the_context(made, tmp_path):
    _, folder, _, base = made("starcoder2")
    model = configured(folder, tmp_path / "model", {"sliding_window": 40})
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
