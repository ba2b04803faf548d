"""`sqft eval` on what would else give a number that means nothing: long prompts, wrong answer keys, broken weights."""

from __future__ import annotations

import pytest
from helpers_eval import write_data

from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate import open_session, perplexity_of
from sqft_plugins.evaluate.harness import load_tasks
from sqft_plugins.evaluate.report import evaluate_model, open_candidate
from sqft_plugins.evaluate.tasks import JsonlTask
from sqft_plugins.tune.examples import Example

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def test_a_long_prompt_of_a_file_is_told_before_the_first_question(data, tiny_llama, monkeypatch, tmp_path) -> None:
    examples = [Example("Say water:", " water"), Example("water and " * 200, " stone")]
    candidate = open_candidate(tiny_llama)
    for name in ("generate", "score"):
        monkeypatch.setattr(candidate.session, name, lambda *_, **__: pytest.fail("a question is asked"))
    tasks = ["arc-easy", JsonlTask("mine.jsonl", examples)]
    with pytest.raises(SQFTError, match=r"task mine question 2 takes \d+ tokens, .* has a context of 256: shorten it"):
        evaluate_model(candidate, tasks, data_dir=data)
    monkeypatch.undo()
    evaluate_model(open_candidate(tiny_llama, cache=False), tasks[1:], limit=1)


@pytest.mark.parametrize("answer", [2, -1, "A"])
def test_a_wrong_answer_in_a_task_file_of_the_users_is_named(answer, tmp_path) -> None:
    """lm-eval only warns, and counts the question as wrong."""
    rows = [{"question": f"q{n}", "choices": ["a", "b"], "gold": gold} for n, gold in enumerate(["b", 0, answer])]
    (tmp_path / "rows.py").write_text(f"from datasets import Dataset\nROWS = {rows!r}\n" + LOAD)
    (tmp_path / "mine.yaml").write_text(MINE)
    with pytest.raises(SQFTError, match=f"task mine question 3: the answer '?{answer}'? is not among its 2 options"):
        load_tasks([str(tmp_path / "mine.yaml")])


LOAD = """
def load(**_):
    return {"test": Dataset.from_list([{**row, "gold": str(row["gold"])} for row in ROWS])}
"""
MINE = """
task: mine
custom_dataset: !function rows.load
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def test_a_model_whose_numbers_are_none_has_no_score(tiny_llama, data, tmp_path) -> None:
    """argmax of NaN is the first option: a broken model would score as many as stand there."""
    model = load_model(tiny_llama)
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    load_tokenizer(tiny_llama).save_pretrained(tmp_path / "broken")
    for _ in range(2):  # nothing of it is kept, either
        with pytest.raises(SQFTError, match="no number as its log-likelihood: look for broken tensors"):
            evaluate_model(open_candidate(tmp_path / "broken"), ["arc-easy"], data_dir=data, limit=2)
    with pytest.raises(SQFTError, match="a mean loss of nan, which makes no perplexity"):
        perplexity_of(open_session(tmp_path / "broken"), "water and stone " * 9)
