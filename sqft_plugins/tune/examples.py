"""Training data as users write it: lines of JSON. Imports no torch, so that a mistake in a file is found at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.text_file import json_lines, read_text
from sqft_plugins.tune.chat import Chat

FORMS = '{"prompt": …, "completion": …}, {"messages": […]} or {"text": …}'


@dataclass(frozen=True)
class Example:
    """One line of training data. An empty prompt is plain text: every token is learned. where: file and line, for
    errors."""

    prompt: str
    completion: str
    where: str = field(default="", compare=False, repr=False)


def read_jsonl(path: str | Path, argument: str = "--data") -> list[Example]:
    """Reads a JSONL of {"prompt": …, "completion": …}. Raises SQFTError that names the line."""
    return [_question(row, where) for row, where in _lines(path, argument)]


def read_examples(path: str | Path, argument: str = "--data") -> list[Example | Chat]:
    """Reads a JSONL whose lines have `prompt` and `completion`, or `messages` (a conversation, with `tools` if need
    be), or `text` (all of it is learned). Raises SQFTError that names the line."""
    return [_example(row, where) for row, where in _lines(path, argument)]


def _lines(path: str | Path, argument: str) -> list[tuple[dict[str, Any], str]]:
    """The objects of a JSONL, each with its place in words."""
    text = read_text(path, argument, f"give a JSONL, a line such as {FORMS}")

    rows = list(json_lines(text, f"{argument} {path}"))
    for row, where in rows:
        if not isinstance(row, dict):
            raise SQFTError(f"{where} is not an object: write {FORMS}")
    if not rows:
        raise SQFTError(f"{argument} {path} has no examples: write one JSON object a line")
    return rows


def _example(row: Mapping[str, Any], where: str) -> Example | Chat:
    if "messages" in row:
        return _conversation(row, where)
    if "prompt" in row or "completion" in row:
        return _question(row, where)
    if not isinstance(row.get("text"), str):
        raise SQFTError(f"{where} is none of {FORMS}: keys there: {sorted(row)}")
    if not row["text"].strip():
        raise SQFTError(f"{where} has an empty text: remove the line")
    return Example("", row["text"], where)


def _question(row: Mapping[str, Any], where: str) -> Example:
    for key in ("prompt", "completion"):
        if not isinstance(row.get(key), str):
            other = nearest(key, row).split(" known:")[0] if row else ""
            raise SQFTError(f"{where} has no text {key!r}: {other} keys there: {sorted(row)}")
    return Example(row["prompt"], row["completion"], where)


def _conversation(row: Mapping[str, Any], where: str) -> Chat:
    messages, tools = row["messages"], row.get("tools")
    if not isinstance(messages, list) or not messages:
        raise SQFTError(f'{where}: messages is no list: write [{{"role": "user", "content": …}}, …]')

    for number, message in enumerate(messages, 1):
        for key in ("role", "content"):
            if key == "content" and _calls_only(message):
                continue
            if not isinstance(message, dict) or not isinstance(message.get(key), str):
                raise SQFTError(f'{where}: message {number} has no text {key!r}: write {{"role": …, "content": …}}')

    if messages[-1]["role"] != "assistant":
        raise SQFTError(
            f"{where}: the last message is of role {messages[-1]['role']!r}: nothing answers it, so end with one of "
            "'assistant'"
        )
    if tools is not None and not isinstance(tools, list):
        raise SQFTError(f"{where}: tools is no list: write the descriptions of the functions as a list")
    return Chat(messages, tools, where)


def _calls_only(message: Mapping[str, Any]) -> bool:
    """Whether a message calls tools and says nothing, as chat APIs return it."""
    return message["role"] == "assistant" and message.get("content") is None and bool(message.get("tool_calls"))


def text_examples(texts: Iterable[str], words: int = 24) -> list[Example]:
    """General text in pieces of `words` words, about as long as a task's examples, so that a batch needs no padding."""
    pieces = []
    for text in texts:
        parts = text.split(" ")
        pieces += [" ".join(parts[i : i + words]) for i in range(0, len(parts), words)]
    return [Example("", piece) for piece in pieces if len(piece.split()) >= words // 2]
