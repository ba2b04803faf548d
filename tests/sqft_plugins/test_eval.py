"""`sqft eval` on lm-evaluation-harness: our tasks, the same numbers as its own model, a cache, clear errors."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.cli import main
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import lm_data, open_session, perplexity_of
from sqft_plugins.evaluate.answers import Answers
from sqft_plugins.evaluate.candidate import Candidate
from sqft_plugins.evaluate.harness import FOLDER, check_names, load_tasks, run_tasks, task_names
from sqft_plugins.evaluate.identity import content_hash, identity
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.evaluate.tasks import JsonlTask

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path

from helpers_eval import option_row, write_data

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def sqft(*arguments) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(argument) for argument in arguments])
    return int(done.value.code or 0)


@pytest.fixture
def short(tmp_path):
    """A user's task file: svamp with few new tokens, as the tiny models have a context of 256."""
    file = tmp_path / "short.yaml"
    ours = FOLDER / "svamp.yaml"
    file.write_text(f"include: {ours}\ntask: short\ngeneration_kwargs: {{until: ['Question:'], max_gen_toks: 16}}\n")
    return str(file)


def by_item(report: dict, task: str) -> list[dict]:
    return sorted(report["samples"][task], key=lambda sample: sample["doc_id"])


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


def test_a_second_evaluation_loads_no_model(tiny_llama, data, short, tmp_path, capsys, monkeypatch) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "Say water:", "completion": " water"}) + "\n")
    arguments = ["eval", tiny_llama, "--task", "arc-easy", "--task", short, "--data-dir", data, "--limit", 3, "--json"]
    arguments += ["--data", tmp_path / "test.jsonl"]
    assert sqft(*arguments) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["asked"] > 0
    monkeypatch.setattr("sqft_plugins.evaluate.report.open_session", lambda *_, **__: pytest.fail("a model is loaded"))
    assert sqft(*arguments) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["asked"] == 0
    assert again["results"] == first["results"]
    assert set(again["results"]) == {"arc-easy", "short", "test", "perplexity"}
    for name, scores in again["results"].items():
        assert any(key.startswith(("acc_stderr", "exact_match_stderr", "perplexity_stderr")) for key in scores), name


def test_a_larger_limit_asks_only_for_what_is_new(tiny_llama, data) -> None:
    asked = [
        evaluate_model(open_candidate(tiny_llama), ["boolq"], data_dir=data, limit=limit)["asked"]
        for limit in (3, 8, 8)
    ]
    assert asked == [6, 10, 0]  # two options a question


def test_an_interrupted_evaluation_keeps_its_answers(tiny_llama, data, monkeypatch) -> None:
    class StoppedError(Exception):
        pass

    candidate = open_candidate(tiny_llama, batch_size=2)
    score, calls = candidate.session.score, []

    def twice(questions):
        calls.append(questions)
        if len(calls) > 2:
            raise StoppedError
        return score(questions)

    monkeypatch.setattr(candidate.session, "score", twice)
    with pytest.raises(StoppedError):
        evaluate_model(candidate, ["boolq"], data_dir=data, limit=8)
    assert evaluate_model(open_candidate(tiny_llama), ["boolq"], data_dir=data, limit=8)["asked"] == 12


def test_what_decides_the_answers_decides_the_identity(tiny_llama, tiny_model, tmp_path) -> None:
    copy = tmp_path / "copy"
    load_model(tiny_llama).save_pretrained(copy)
    load_tokenizer(tiny_llama).save_pretrained(copy)
    before = identity(copy, None, "max", {})
    (copy / "README.md").write_text("a card")
    assert identity(copy, None, "max", {}) == before
    assert identity(copy, None, "max", {"dtype": "float32"}) != before
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert identity(copy, None, "max", {}) != before


def test_every_part_of_a_split_gguf_decides(tmp_path) -> None:
    names = [f"m-{part:05}-of-00002.gguf" for part in (1, 2)]
    for name in (*names, "m-00001-of-00003.gguf", "other-00002-of-00002.gguf"):
        (tmp_path / name).write_text(name)
    before = content_hash(tmp_path / names[0])
    for name in ("m-00001-of-00003.gguf", "other-00002-of-00002.gguf"):
        (tmp_path / name).write_text("another model")
    assert content_hash(tmp_path / names[0]) == before
    (tmp_path / names[1]).write_text("other weights")
    assert content_hash(tmp_path / names[0]) != before


def test_a_damaged_cache_is_named(tmp_path) -> None:
    answers = Answers(tmp_path / "a", {"model": "x"})
    answers.put([1.5, True], "likelihood", "a", "b")
    assert Answers(tmp_path / "a", {"model": "x"}).get("likelihood", "a", "b") == [1.5, True]
    assert Answers(tmp_path / "a", {"model": "y"}).get("likelihood", "a", "b") is None
    answers.close()
    assert answers.get("likelihood", "a", "b") == [1.5, True]  # it opens its file again
    answers.close()
    answers.file.write_bytes(b"no database at all, but long enough to be looked at as one")
    with pytest.raises(SQFTError, match=r"cannot be used .*delete it"):
        Answers(tmp_path / "a", {"model": "x"})
    with pytest.raises(SQFTError, match=r"cannot be used .*delete it"):
        answers.get("likelihood", "a", "b")


def test_a_closed_candidate_leaves_its_files(tiny_llama) -> None:
    candidate = open_candidate(tiny_llama)
    cache = Path(os.environ["SQFT_EVAL_CACHE"]).resolve()

    def open_files() -> int:
        return sum(Path(os.readlink(f"/proc/self/fd/{fd}")).is_relative_to(cache) for fd in _descriptors())

    assert open_files() == 1
    candidate.close()
    assert open_files() == 0


def _descriptors() -> list[str]:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc here")
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


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


def test_the_perplexity_has_the_error_of_its_windows(tiny_llama) -> None:
    session = open_session(tiny_llama, dtype="float32")
    text = " ".join(f"stone {number} water" for number in range(400))
    found = perplexity_of(session, text, 3 * 256)
    single = perplexity_of(session, text, 200)
    assert 0 < found.stderr < found.value
    assert found.tokens == 3 * 256  # each window's first token is predicted from <bos>
    assert single.stderr != single.stderr  # one window has no error


# --- data ---


def test_options_are_read_out_of_the_instruction() -> None:
    def read(instruction: str, answer: str) -> dict:
        text = f"Please choose the correct answer to the question: {instruction}\n\nAnswer format: answer1/answer2"
        return lm_data.local_options({"instruction": text, "answer": answer})

    plain = read("Is 2 more than 1?\n\nAnswer1: yes Answer2: no, never Answer3: both: at once", "answer3")
    assert plain == {"question": "Is 2 more than 1?", "choices": ["yes", "no, never", "both: at once"], "gold": 2}
    tricky = read("In the Answer: box, what is 2?\n\nAnswer1: one\nAnswer2: two words, Answer 3", "answer2")
    assert tricky["question"] == "In the Answer: box, what is 2?"
    assert tricky["choices"] == ["one", "two words, Answer 3"]


@pytest.mark.parametrize(
    ("text", "number"),
    [("8.0", 8), ("so 1,234 eggs.", 1234), ("3 - 5 = -2.", -2), (".5", 0.5), ("none", None), ("It is 4. Then 7", 7)],
)
def test_the_last_number_counts(text, number) -> None:
    assert lm_data.parse_number(text) == number


def test_gsm8k_is_judged_behind_its_mark() -> None:
    doc = {"number": 18.0}
    assert lm_data.judge_gsm8k(doc, ["9*2=18\n#### 18\n\nso 3"]) == {"exact_match": 1.0, "last_number": 0.0}
    assert lm_data.judge_gsm8k(doc, ["#### 18 apples in 2 days"]) == {"exact_match": 1.0, "last_number": 0.0}
    assert lm_data.judge_gsm8k(doc, ["it is $18."]) == {"exact_match": 0.0, "last_number": 1.0}
    assert lm_data.judge_number({"number": 11 / 6}, ["about 1.8333"]) == {"exact_match": 1.0}


HUB = {
    "arc-easy": {"question": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "openbookqa": {"question_stem": "Q?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
    "boolq": {"question": "is it wet", "passage": "…", "answer": True},
    "svamp": {"question_concat": "How many?", "Answer": "145"},
    "mawps": {"question": "How many?", "result": "145", "result_float": 145.0},
}


@pytest.mark.parametrize("source", HUB)
def test_rows_in_the_form_of_the_hub_are_read(source) -> None:
    doc = lm_data.SOURCES[source].remote(HUB[source])
    assert doc["gold"] == 1 if "gold" in doc else doc["number"] == 145


# --- bad input ---


def break_row(data, content) -> None:
    rows = json.loads((data / "arc_easy/test.json").read_text())
    rows[2] = content
    (data / "arc_easy/test.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (option_row(0, 3, answer="answer7"), "test.json row 3: answer 'answer7' is none of answer1, answer2, answer3"),
        (option_row(0) | {"instruction": "What?"}, "test.json row 3: instruction has no options"),
        ({"answer": "answer1"}, "test.json row 3: no text 'instruction'"),
        ("text", "test.json row 3: no text 'instruction'"),
    ],
)
def test_a_wrong_row_is_named_before_a_model_is_loaded(row, message, data, tiny_llama, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sqft_plugins.evaluate.report.open_session", lambda *_, **__: pytest.fail("a model is loaded"))
    break_row(data, row)
    assert sqft("eval", tiny_llama, "--task", "arc-easy", "--data-dir", data) == 2
    assert message in capsys.readouterr().err


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
    assert "--data-dir nowhere is not a folder" in told("--task", "boolq", "--data-dir", "nowhere")
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


def test_every_task_file_has_a_source_and_the_hub_is_named_when_it_fails(monkeypatch) -> None:
    assert set(task_names()) == set(lm_data.SOURCES)
    check_names(task_names())
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(SQFTError, match=r"google/boolq cannot be loaded from the hub \(no network\).*--data-dir"):
        load_tasks(["boolq"])


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
