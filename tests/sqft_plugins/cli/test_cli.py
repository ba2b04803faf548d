"""The command line as a user meets it: one line for every mistake, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sqft_plugins.cli import VERBS, main


def sqft(*arguments) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples(verb, capsys) -> None:
    assert sqft(verb, "--help") == 0
    text = capsys.readouterr().out
    assert "Examples:" in text
    assert text.count(f"sqft {verb}") >= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prunne"], "verb 'prunne' is unknown: did you mean 'prune'?"),
        (["prune", "nowhere/at/all", "--sparsity", "0.5", "--out", "x"], "model nowhere/at/all is not a folder"),
        (["prune", "{empty}", "--sparsity", "0.5", "--out", "x"], "is a file: give the folder of a model"),
        (["prune", "{model}", "--sparsity", "1.5", "--out", "x"], "sparsity=1.5 is outside 0..1"),
        (["prune", "{model}", "--sparsity", "-1", "--out", "x"], "sparsity=-1.0 is outside 0..1"),
        (["prune", "{model}", "--sparsity", "0.5", "--method", "wand", "--out", "x"], "did you mean 'wanda'?"),
        (["prune", "{model}", "--sparsity", "0.5", "--out", "{model}"], "exists: choose another path, or replace it"),
        (["prune", "{bare}", "--sparsity", "0.5", "--out", "x"], "has no tokenizer: copy tokenizer.json"),
        (["quantize", "{model}", "--group-size", "48", "--out", "x"], "group_size=48 does not divide in=64"),
        (["train", "{model}", "--data", "no.jsonl", "--out", "x"], "--data no.jsonl is not there"),
        (
            ["train", "{model}", "--data", "{data}", "--rank-choices", "8,x", "--out", "x"],
            "is no list of whole numbers",
        ),
        (["train", "{model}", "--data", "{data}", "--rank-choices", "8,4", "--out", "x"], "maximum 8 but r=32"),
        (["extract", "{model}", "--out", "x"], "has no adapter_config.json"),
        (["merge", "{model}", "nowhere", "--out", "x"], "adapter nowhere has no adapter_config.json"),
        (["eval", "nowhere.gguf"], "model nowhere.gguf is not there"),
        (["eval", "{model}", "--task", "word-problem"], "did you mean 'word-problems'?"),
        (["export", "gguf", "nowhere", "--out", "x.gguf"], "nowhere is not a folder"),
        (["demo", "--sparsity", "2"], "Invalid value for '--sparsity': 2.0 is not in the range 0<=x<=1"),
        (["demo", "--out", "{model}"], "exists and is no demo folder"),
        (["demo", "--data", "{empty}", "--model", "{model}", "--out", "x"], "has no examples"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments, message, tiny_llama, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(tiny_llama / name)
    (tmp_path / "d.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "empty.jsonl").write_text("")
    before = sorted(path.name for path in tmp_path.iterdir())
    places = {"model": tiny_llama, "bare": bare, "data": tmp_path / "d.jsonl", "empty": tmp_path / "empty.jsonl"}
    assert sqft(*(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert error.split("\n")[-1].startswith("sqft: ")
    assert message in error.split("\n")[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.once
def test_an_interrupted_run_leaves_nothing(tiny_llama, tmp_path) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "What is it?", "completion": " a test"}\n' * 64)
    command = [sys.executable, "-c", "from sqft_plugins.cli import main; main()", "train", str(tiny_llama)]
    command += ["--data", str(tmp_path / "d.jsonl"), "--steps", "100000", "--out", str(tmp_path / "out"), "--overwrite"]
    run = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore Ctrl-C
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".out.*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(3)  # well into the work
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 2
    assert errors.strip().split("\n")[-1].startswith("sqft: interrupted")
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"]


def test_eval_scores_any_runtime_as_json(tiny_llama, tmp_path, capsys) -> None:
    gguf = tmp_path / "tiny.gguf"
    assert sqft("export", "gguf", tiny_llama, "--out", gguf, "--float-type", "f32") == 0
    (tmp_path / "text.txt").write_text(Path(__file__).read_text())
    capsys.readouterr()
    scores = {}
    for model in (tiny_llama, gguf):
        assert sqft("eval", model, "--limit", "3", "--text", tmp_path / "text.txt", "--json") == 0
        scores[str(model)] = json.loads(capsys.readouterr().out)
    ours, llama = scores.values()
    assert ours["questions"] == llama["questions"] == 3
    # the same float32 weights; llama.cpp keeps its KV cache in half precision
    assert llama["perplexity"] == pytest.approx(ours["perplexity"], rel=1e-3)
