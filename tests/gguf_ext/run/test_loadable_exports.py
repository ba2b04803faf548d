"""What is exported runs in llama.cpp as the model does; what could not is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from gguf_ext import LlamaSession, export_gguf, verify_gguf
from sqft_plugins.cli import main
from sqft_plugins.errors import SQFTError

TOKENS = torch.randint(4, 400, (48,), generator=torch.Generator().manual_seed(2)).tolist()
FULL, SLIDING = "full_attention", "sliding_attention"
ROPE = {"rope_theta": 10000.0}


RUN = [
    *[("llama", {"head_dim": head}) for head in (2, 6, 10, 32)],
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"hidden_act": "swish", "rms_norm_eps": 0.0, "pretraining_tp": 2}),
    ("llama", {"num_hidden_layers": 1, "intermediate_size": 1, "max_position_embeddings": 48}),
    *[
        ("llama", {"rope_parameters": {**ROPE, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": low}})
        for low in (1.0, 4.0, 8.0)  # 4.0 is the high one, 8.0 above it
    ],
    ("mistral", {"head_dim": 32, "sliding_window": None}),
    ("mistral", {"num_attention_heads": 5, "num_key_value_heads": 5, "sliding_window": 1000}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 5}),
    ("qwen2", {"head_dim": 16}),
    ("qwen3", {"head_dim": 32}),
    ("phi3", {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.4}}),
    ("gemma3_text", {"layer_types": [FULL] * 2}),
    ("gemma3_text", {"layer_types": [SLIDING] * 2}),
    ("gemma3_text", {"layer_types": [FULL, SLIDING], "final_logit_softcapping": 5.0, "tie_word_embeddings": False}),
    ("gemma3_text", {"num_hidden_layers": 7, "num_key_value_heads": 1}),
    ("gpt2", {"n_inner": 100, "activation_function": "gelu_fast", "tie_word_embeddings": False}),
    ("gpt2", {"n_head": 32, "reorder_and_upcast_attn": True, "layer_norm_epsilon": 0.0}),
    *[("bloom", {"n_head": heads, "hidden_size": 96}) for heads in (1, 3, 6, 12)],
    ("bloom", {"slow_but_exact": True, "layer_norm_epsilon": 1e-2, "tie_word_embeddings": False}),
]


@pytest.mark.parametrize(("family", "options"), RUN, ids=lambda value: str(value)[:60])
def test_what_is_exported_runs_as_the_model_does(save, tmp_path, family, options):
    rope = options.get("rope_parameters", {})
    if rope.get("rope_type") == "llama3":
        rope.update({"high_freq_factor": 4.0, "original_max_position_embeddings": 64})
    folder = save(family, **options)
    export_gguf(folder, tmp_path / "model.gguf", float_type="f32")
    assert verify_gguf(folder, tmp_path / "model.gguf").exact

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted = model(torch.tensor([TOKENS])).logits[0].double().log_softmax(-1)
    with LlamaSession(tmp_path / "model.gguf", threads=1, kv_type="f32", flash_attention=False) as session:
        found = torch.cat([part.clone() for part in session.logits(TOKENS)]).double().log_softmax(-1)
    assert (wanted.exp() * (wanted - found)).sum(-1).mean() < 1e-5


REFUSED = [
    *[("qwen2", {"head_dim": head}, "heads of .* are not the embedding's 64") for head in (8, 32)],
    *[("phi3", {"head_dim": head}, "heads of .* are not the embedding's 64") for head in (8, 32)],
    ("mistral", {"num_hidden_layers": 0}, "block_count=0"),
    ("gpt2", {"n_layer": 0}, "block_count=0"),
    ("llama", {"raw": {"num_hidden_layers": 0}}, "no place"),
    ("llama", {"num_key_value_heads": 8}, "head_count_kv=8 does not divide"),
    ("qwen3", {"num_key_value_heads": 3}, "head_count_kv=3 does not divide"),
    ("llama", {"rms_norm_eps": -1e-3}, "rms_epsilon=-0.001"),
    ("llama", {"max_position_embeddings": 10**10}, "does not fit a GGUF file"),
    ("llama", {"max_position_embeddings": 0}, "context_length=0"),
    ("qwen3", {"max_position_embeddings": 2**32 - 1}, "context_length=4294967295"),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "freq_base=0.0"),
    ("mistral", {"sliding_window": 0}, "sliding_window=0 is no window"),
    ("phi3", {"rope_parameters": {**ROPE, "rope_type": "default", "partial_rotary_factor": 0.1}}, "dimension_count=1"),
    ("gemma3_text", {"raw": {"sliding_window": None, "layer_types": [SLIDING] * 2}}, "sliding_window=None"),
    ("gemma3_text", {"raw": {"sliding_window": 0, "layer_types": [SLIDING] * 2}}, "sliding_window=0"),
    ("gemma3_text", {"raw": {"final_logit_softcapping": 0.0}}, "final_logit_softcapping=0.0"),
    ("gemma3_text", {"raw": {"attn_logit_softcapping": 0.0}}, "attn_logit_softcapping"),
    ("gpt2", {"n_head": 64}, "key_length=1"),
    ("bloom", {"n_head": 64}, "key_length=1"),
    ("bloom", {"slow_but_exact": True, "pretraining_tp": 2}, "slow_but_exact"),
]


@pytest.mark.parametrize(("family", "options", "why"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_llama_cpp_cannot_run_is_refused_in_a_line(save, tmp_path, family, options, why):
    folder = save(family, **options)
    with pytest.raises(SQFTError, match=why) as caught:
        export_gguf(folder, tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.gguf").exists()


def test_layers_without_a_window_need_none(save, tmp_path):
    """transformers has no mask for it, so there is nothing to compare; llama.cpp loads and runs it."""
    folder = save("gemma3_text", raw={"sliding_window": None, "layer_types": [FULL] * 2})
    export_gguf(folder, tmp_path / "model.gguf")
    with LlamaSession(tmp_path / "model.gguf", threads=1) as session:
        assert all(part.isfinite().all() for part in session.logits(TOKENS))


def test_the_command_says_it_in_one_line_and_ends_with_2(save, tmp_path, capsys):
    folder = save("qwen2", head_dim=32)
    with pytest.raises(SystemExit) as ended:
        main(["export", "gguf", str(folder), "--out", str(tmp_path / "model.gguf")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("sqft: llama.cpp cannot load model")
