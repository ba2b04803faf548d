"""`sqft eval` on lm-evaluation-harness: our tasks, the same numbers as its own model, a cache, clear errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_eval import break_row, by_item, option_row, sqft, write_data

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import open_session
from sqft_plugins.evaluate.candidate import Candidate
from sqft_plugins.evaluate.harness import load_tasks, run_tasks
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.evaluate.tasks import JsonlTask

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma"])
def test_every_item_scores_as_lm_evals_own_model_does(model, data, request) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    folder = request.getfixturevalue(model)
    ours = evaluate_model(
        open_candidate(folder, dtype="float32"), ["arc-easy", "boolq"], data_dir=data, shots=1, samples=True
    )
    upstream = HFLM(pretrained=str(folder), dtype="float32", batch_size=5, device="cpu")
    loaded = load_tasks(["arc-easy", "boolq"], data, shots=1)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(1234)
    theirs = evaluate(lm=upstream, task_dict=loaded)
    for task in ("arc-easy", "boolq"):
        for one, other in zip(by_item(ours, task), by_item(theirs, task), strict=True):
            assert [tuple(pair) for pair in one["arguments"]] == [tuple(pair) for pair in other["arguments"]]
            for (score, greedy), (expected, right) in zip(one["filtered_resps"], other["filtered_resps"], strict=True):
                assert score == pytest.approx(expected, abs=2e-4)  # float32, other orders of summation
                assert greedy == right
            assert (one["acc"], one["acc_norm"]) == (other["acc"], other["acc_norm"])
        assert ours["results"][task] == pytest.approx(theirs["results"][task])


def test_completions_are_those_of_lm_evals_own_model(tiny_llama, data, short) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    candidate = open_candidate(tiny_llama, dtype="float32", cache=False)
    ours = run_tasks(candidate, load_tasks([short], data), limit=4, samples=True)
    upstream = HFLM(pretrained=str(tiny_llama), dtype="float32", batch_size=1, device="cpu")
    theirs = evaluate(lm=upstream, task_dict=load_tasks([short], data), limit=4)
    answers = [[item["resps"] for item in by_item(report, "short")] for report in (ours, theirs)]
    assert answers[0] == answers[1]
    assert any(text for ((text,),) in answers[0])


def test_rolling_texts_score_as_lm_evals_own_model_does(tiny_llama) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from sqft_plugins.evaluate.lm import CandidateLM

    text = "the water is near the stone and " * 60  # more than the context of 256 tokens
    requests = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    candidate = open_candidate(tiny_llama, dtype="float32", cache=False)
    upstream = HFLM(pretrained=str(tiny_llama), dtype="float32", batch_size=1, device="cpu")
    (ours,), (theirs,) = (lm.loglikelihood_rolling(requests) for lm in (CandidateLM(candidate), upstream))
    assert len(candidate.tokenize(text)) > 256
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_gguf_scores_as_the_folder_it_was_made_of(tiny_llama, data, tmp_path, capsys) -> None:
    gguf = tmp_path / "tiny.gguf"
    assert sqft("export", "gguf", tiny_llama, "--out", gguf, "--float-type", "f32") == 0
    reports = [
        evaluate_model(open_candidate(path, **options), ["arc-easy"], data_dir=data, limit=4, samples=True)
        for path, options in ((tiny_llama, {"dtype": "float32"}), (gguf, {"kv_type": "f32", "flash_attention": False}))
    ]
    for ours, llama in zip(*(by_item(report, "arc-easy") for report in reports), strict=True):
        for (expected, _), (score, _) in zip(ours["filtered_resps"], llama["filtered_resps"], strict=True):
            assert score == pytest.approx(expected, abs=1e-2)  # llama.cpp multiplies in another order


def test_every_task_gives_its_samples(tiny_llama, data, short, tmp_path, capsys) -> None:
    rows = [{"prompt": f"Say {word}:", "completion": f" {word}"} for word in ("water", "stone")]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = [
        "eval",
        tiny_llama,
        "--task",
        short,
        "--data-dir",
        data,
        "--data",
        tmp_path / "mine.jsonl",
        "--limit",
        2,
    ]
    arguments += ["--no-perplexity", "--samples", tmp_path / "samples.jsonl"]
    assert sqft(*arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["task"] for line in lines] == ["short", "short", "mine", "mine"]
    session = open_session(tiny_llama)
    for line, row, text in zip(lines[2:], rows, session.generate([row["prompt"] for row in rows], 12), strict=True):
        assert (line["doc"]["prompt"], line["target"]) == (row["prompt"], row["completion"])
        assert line["filtered_resps"] == [text]
        assert line["acc"] == float(text.strip().split("\n")[0].strip() == row["completion"].strip())
    capsys.readouterr()
    assert sqft(*arguments) == 2
    assert "--samples" in (told := capsys.readouterr().err)
    assert "exists" in told
    assert sqft(*arguments, "--overwrite") == 0


# --- data ---


# --- bad input ---


def test_bad_files_and_names_are_told_before_a_model_is_loaded(data, tiny_llama, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.evaluate.report.open_session", lambda *_, **__: pytest.fail("a model is loaded"))

    def told(*arguments) -> str:
        assert sqft("eval", tiny_llama, *arguments) == 2
        return capsys.readouterr().err

    (data / "boolq/test.json").write_text("[]")
    assert "boolq/test.json is empty" in told("--task", "boolq", "--data-dir", data)
    with open(data / "gsm8k/test.jsonl", "a") as file:
        file.write("\n{broken")
    assert "gsm8k/test.jsonl line 13 is not JSON" in told("--task", "gsm8k", "--data-dir", data)
    assert "has no openbookqa/test.json" in told("--task", "openbookqa", "--data-dir", data)
    assert "--data-dir nowhere is not there" in told("--task", "boolq", "--data-dir", "nowhere")
    file = data / "boolq/test.json"
    assert f"--data-dir {file} is not a folder" in told("--task", "boolq", "--data-dir", file)
    assert "did you mean 'arc-easy'?" in told("--task", "arc-esy")
    assert "--shots 2 cannot be used with svamp" in told("--task", "svamp", "--data-dir", data, "--shots", "2")
    assert "--model names what a --server" in told("--model", "base")
    assert "--rank is that of an adapter" in told("--rank", "min")
    assert "transformers does not take threads" in told("--threads", "2")
    assert "--samples" in told("--samples", tiny_llama / "config.json" / "deeper.jsonl")
    (data / "boolq.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    same = ("--task", "boolq", "--data", data / "boolq.jsonl", "--data-dir", write_data(data / "whole"))
    assert "two tasks are called boolq: rename the --data file" in told(*same)
    assert "--dtype is not for a --server" in capsys_of("--server", "http://x", "--dtype", "float32", capsys=capsys)
    assert "--server http://127.0.0.1:9 does not answer" in capsys_of("--server", "http://127.0.0.1:9", capsys=capsys)


def capsys_of(*arguments, capsys) -> str:
    assert sqft("eval", *arguments) == 2
    return capsys.readouterr().err


def test_a_prompt_longer_than_the_context_is_told_before_the_first_question(data, tiny_llama, monkeypatch) -> None:
    long = option_row(2)
    long["instruction"] = long["instruction"].replace("near the", "near the " + "far away stone " * 120)
    break_row(data, long)
    candidate = open_candidate(tiny_llama)
    monkeypatch.setattr(candidate.session, "score", lambda _: pytest.fail("a question is asked"))
    with pytest.raises(SQFTError, match=r"task arc-easy question 3 takes \d+ tokens, .* has a context of 256"):
        evaluate_model(candidate, ["arc-easy"], data_dir=data)


def test_an_empty_task_is_refused(tiny_llama, tmp_path) -> None:
    with pytest.raises(SQFTError, match="task none has no questions"):
        evaluate_model(Candidate("x", lambda: pytest.fail("loaded")), [JsonlTask(tmp_path / "none", [])])


def test_without_lm_eval_the_remedy_is_told(tiny_llama, data, capsys, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert sqft("eval", tiny_llama, "--task", "boolq", "--data-dir", data) == 2
    assert "pip install 'sqft-plugins[eval]'" in capsys.readouterr().err


def test_a_sampling_task_is_refused(tiny_llama, data, short) -> None:
    Path(short).write_text(Path(short).read_text().replace("16}", "16, do_sample: true, temperature: 0.7}"))
    with pytest.raises(SQFTError, match=r"task short samples its answers \(do_sample\)"):
        evaluate_model(open_candidate(tiny_llama), [short], data_dir=data)
