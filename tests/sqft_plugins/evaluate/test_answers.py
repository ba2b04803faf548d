"""A second evaluation asks the model nothing, and a damaged memory is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from helpers_eval import sqft

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.answers import Answers
from sqft_plugins.evaluate.report import evaluate_model, open_candidate

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_cache")


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
