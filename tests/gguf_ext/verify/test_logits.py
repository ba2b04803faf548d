"""Logits of both engines on one text."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gguf_ext import GGUFError, LlamaSession, export_gguf
from gguf_ext.verify.logits import compare_logits
from sqft_plugins.cli import main
from sqft_plugins.evaluate import perplexity

TEXT = "The quick brown fox jumps over the lazy dog, and the dog doesn't mind. " * 12


@pytest.fixture(scope="module")
def file(llama, tmp_path_factory):
    target = tmp_path_factory.mktemp("compare") / "m.gguf"
    export_gguf(llama, target, float_type="f32")
    return target


def test_the_numbers_are_those_written_out(llama, file):
    report = compare_logits(llama, file, TEXT, max_tokens=100)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32),
        AutoTokenizer.from_pretrained(llama),
    )
    tokens = tokenizer(TEXT).input_ids[:101]  # and <bos>
    with torch.no_grad():
        ours = model(torch.tensor([tokens[:-1]])).logits[0].double()
    with LlamaSession(file, threads=1, kv_type="f32", flash_attention=False) as session:
        theirs = torch.cat([chunk.clone() for chunk in session.logits(tokens[:-1])]).double()
    p, q = ours.softmax(-1), theirs.softmax(-1)
    kl = (p * (p / q).log()).sum(-1)
    assert report.tokens == 100
    assert report.same_tokens
    assert report.mean_kl == pytest.approx(float(kl.mean()), rel=1e-2, abs=1e-12)
    assert report.p99_kl == pytest.approx(float(kl.quantile(0.99)), rel=1e-2, abs=1e-12)
    assert report.top1 == 1
    assert report.mean_kl < 1e-5
    assert report.largest < 0.1
    following = torch.tensor(tokens[1:])
    assert report.perplexity_model == pytest.approx(float((-p[range(100), following].log()).mean().exp()), rel=1e-5)
    assert report.perplexity_file == pytest.approx(report.perplexity_model, rel=1e-4)


def test_the_perplexity_is_that_of_sqft_eval(llama, file):
    report = compare_logits(llama, file, TEXT, max_tokens=300)  # two windows
    with LlamaSession(file, threads=1, kv_type="f32", flash_attention=False) as session:
        assert report.perplexity_file == pytest.approx(perplexity(session, TEXT, 300), rel=1e-5)


def test_int4_rounds_activations_and_other_weights_are_far_off(llama_int4, llama, gemma3, tmp_path):
    export_gguf(llama_int4, tmp_path / "int4.gguf")
    near = compare_logits(llama_int4, tmp_path / "int4.gguf", TEXT, max_tokens=100)
    far = compare_logits(llama, tmp_path / "int4.gguf", TEXT, max_tokens=100)
    assert 1e-6 < near.mean_kl < far.mean_kl / 10
    with pytest.raises(GGUFError, match="it is another model"):
        compare_logits(gemma3, tmp_path / "int4.gguf", TEXT)
    with pytest.raises(GGUFError, match="the text has 0 tokens"):
        compare_logits(llama, tmp_path / "int4.gguf", "")


def test_verify_logits_from_the_command_line(llama, file, tmp_path, capsys):
    (tmp_path / "prose.txt").write_text(TEXT)
    arguments = [
        "verify",
        str(llama),
        str(file),
        "--logits",
        "--text",
        str(tmp_path / "prose.txt"),
        "--max-tokens",
        "60",
    ]
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert "60 tokens of text, cut alike by both" in shown
    assert "top-1 agreement 100.0%" in shown
    with pytest.raises(SystemExit):
        main([*arguments, "--json"])
    assert json.loads(capsys.readouterr().out)["logits"]["mean_kl"] < 1e-5
    with pytest.raises(SystemExit) as done:
        main(["verify", str(llama), str(file), "--text", str(tmp_path / "prose.txt")])
    assert done.value.code == 2
    assert "--text needs --logits" in capsys.readouterr().err
