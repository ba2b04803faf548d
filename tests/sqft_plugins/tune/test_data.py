"""Prompts and completions: read, tokenized, mixed with general text."""

from __future__ import annotations

import json

import pytest

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.data import IGNORED, mix, tokenize
from sqft_plugins.tune.examples import Example, read_jsonl, text_examples

EXAMPLES = [Example(f"Question: what follows {n}?\nAnswer:", f" {n + 1}") for n in range(40)]


def write_lines(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_jsonl_is_read(tmp_path) -> None:
    rows = [json.dumps({"prompt": e.prompt, "completion": e.completion, "more": 1}) for e in EXAMPLES]
    assert read_jsonl(write_lines(tmp_path / "d.jsonl", *rows, "")) == EXAMPLES


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2 is not JSON"),
        ("[1]", r"line 2 is not an object"),
        ('{"prompt": "a", "completoin": "b"}', r"line 2 has no text 'completion': did you mean 'completoin'\?"),
        ('{"prompt": "a", "completion": 3}', r"line 2 has no text 'completion'"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message) -> None:
    good = '{"prompt": "a", "completion": "b"}'
    with pytest.raises(SQFTError, match=message):
        read_jsonl(write_lines(tmp_path / "d.jsonl", good, line))


def test_no_data_is_refused(tmp_path) -> None:
    with pytest.raises(SQFTError, match="has no examples"):
        read_jsonl(write_lines(tmp_path / "d.jsonl", ""))
    with pytest.raises(SQFTError, match="is not a file"):
        read_jsonl(tmp_path / "nowhere.jsonl")


def test_only_the_completion_is_learned(tiny_tokenizer) -> None:
    tokenizer = tiny_tokenizer("byte-level")
    (row,) = tokenize([Example("Two and two:", " four")], tokenizer, 64)
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(learned) == " four<eos>"
    assert row["input_ids"][0] == tokenizer.bos_token_id
    assert [label for label in row["labels"] if label != IGNORED] == learned
    (text,) = tokenize([Example("", "plain text")], tokenizer, 64)
    assert tokenizer.decode([label for label in text["labels"] if label != IGNORED]) == "plain text"
    with pytest.raises(SQFTError, match=r"example 1 has \d+ tokens, max_length=8: shorten it or raise max_length"):
        tokenize([Example("a long prompt " * 9, " end")], tokenizer, 8)


def test_mixing_keeps_the_share_of_text_in_every_batch_and_uses_everything() -> None:
    task, text = [("task", i) for i in range(30)], [("text", i) for i in range(10)]
    rows = mix(task, text, text_fraction=0.25, batch_size=8, steps=10, seed=1)
    batches = [rows[i : i + 8] for i in range(0, 80, 8)]
    assert all(sum(kind == "text" for kind, _ in batch) == 2 for batch in batches)
    assert set(rows) == set(task) | set(text)
    assert rows == mix(task, text, 0.25, 8, 10, 1) != mix(task, text, 0.25, 8, 10, 2)
    assert text_examples(["one two three four"], words=2) == [Example("", "one two"), Example("", "three four")]
