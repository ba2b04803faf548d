"""The three forms of a line of training data, and what is wrong with one."""

from __future__ import annotations

import json

import pytest
from helpers_train import TALK, lines

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.chat import Chat, read_template
from sqft_plugins.tune.examples import Example, read_examples, read_jsonl


def test_a_file_may_mix_the_three_forms(tmp_path) -> None:
    strange = "two\u2028lines"  # a line end to Python, but not to JSON
    question = {"prompt": "a", "completion": strange, "id": 7}
    file = tmp_path / "mixed.jsonl"
    file.write_text("\n".join([json.dumps(question, ensure_ascii=False), "", json.dumps({"messages": TALK})]) + "\n"
                    + json.dumps({"text": "all of it"}))  # fmt: skip
    assert read_examples(file) == [Example("a", strange), Chat(TALK), Example("", "all of it")]
    assert [example.where[-6:] for example in read_examples(file)] == ["line 1", "line 3", "line 4"]
    with pytest.raises(SQFTError, match="line 3 has no text 'prompt'"):
        read_jsonl(file)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"messages": [', "is not JSON"),
        ('{"text": "a", "id": ' + "9" * 5000 + "}", "is not JSON"),
        ('{"text": "cut off \\uD83d"}', r"has half of a character \(\\ud83d\), which is no text"),
        ({"mesages": TALK}, r"is none of .*keys there: \['mesages'\]"),
        ({"messages": "hello"}, "messages is no list"),
        ({"messages": [{"role": "user"}]}, "message 1 has no text 'content'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "message 1 has no text 'content'"),
        ({"messages": [{"role": "user", "content": None, "tool_calls": [1]}]}, "message 1 has no text 'content'"),
        ({"messages": TALK[:4]}, "the last message is of role 'user': nothing answers it"),
        ({"messages": TALK, "tools": "calculator"}, "tools is no list"),
        ({"text": "  "}, "has an empty text"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message) -> None:
    with pytest.raises(SQFTError, match=f"--eval-data .*bad.jsonl line 2.*{message}"):
        read_examples(lines(tmp_path / "bad.jsonl", {"text": "fine"}, row), "--eval-data")


def test_a_file_that_is_no_text_is_refused(tmp_path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(json.dumps({"text": "é"}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(SQFTError, match="is not UTF-8 text"):
        read_examples(tmp_path / "latin.jsonl")
    with pytest.raises(SQFTError, match=r"--chat-template .*none\.jinja is not a file"):
        read_template(tmp_path / "none.jinja")
