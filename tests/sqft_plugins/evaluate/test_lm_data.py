"""Rows of the data sets become questions, and a wrong row is named."""

from __future__ import annotations

import pytest
from helpers_eval import break_row, option_row, sqft

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import lm_data
from sqft_plugins.evaluate.harness import check_names, load_tasks, task_names

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            option_row(0, 3, answer="answer7"),
            "test.json row 3: answer 'answer7' is not one of answer1, answer2, answer3",
        ),
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


def test_every_task_file_has_a_source_and_the_hub_is_named_when_it_fails(monkeypatch) -> None:
    assert set(task_names()) == set(lm_data.SOURCES)
    check_names(task_names())
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no network")))
    with pytest.raises(SQFTError, match=r"google/boolq cannot be loaded from the hub \(no network\).*--data-dir"):
        load_tasks(["boolq"])
