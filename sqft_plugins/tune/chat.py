"""Conversations: rendered by the tokenizer's chat template, learned at the assistant's turns only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqft_plugins.errors import SQFTError
from sqft_plugins.text_file import read_text

Message = Mapping[str, Any]
Span = tuple[int, int]
MARKED = re.compile(r"\{%-?\s*generation")
"""A template may mark what the assistant writes itself, between `{% generation %}` and `{% endgeneration %}`."""


@dataclass(frozen=True)
class Chat:
    """A conversation as chat templates take it.

    messages: each with `role` and `content`, the last one the assistant's. The content of a message that calls tools
        may be None or left out: templates see no difference.
    tools: descriptions of functions, for templates that know them.
    where: file and line, for errors.
    """

    messages: Sequence[Message]
    tools: Sequence[Any] | None = None
    where: str = field(default="", compare=False, repr=False)


def read_template(path: str | Path) -> str:
    """The text of a Jinja file. Raises SQFTError."""
    return read_text(path, "--chat-template", "give a Jinja file, such as chat_template.jinja")


def chat_tokens(chat: Chat, tokenizer: Any, where: str) -> tuple[list[int], list[bool]]:
    """Tokens of the whole conversation, as `apply_chat_template` gives them, and which of them are learned.

    Learned is every token that carries a character of an assistant's turn: what comes after the template's prompt for
    the assistant, up to and with the mark that ends the turn; white space behind that mark is not. Raises SQFTError
    where the tokenizer has no template, where the template refuses the conversation, and where a turn cannot be told
    from the rest of it.
    """
    if not tokenizer.chat_template:
        raise SQFTError(
            f"{where} is a conversation, but the tokenizer has no chat template: give one with --chat-template FILE, "
            "or write prompt and completion"
        )
    if not tokenizer.is_fast:
        raise SQFTError(f"{where} is a conversation, which needs a fast tokenizer (tokenizer.json)")

    # the template marks what the assistant writes, or it is found in the text
    if isinstance(tokenizer.chat_template, str) and MARKED.search(tokenizer.chat_template):
        marked = _render(chat, tokenizer, where, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        tokens, learned = marked["input_ids"], [bool(mark) for mark in marked["assistant_masks"]]
    else:
        text = _render(chat, tokenizer, where)
        spans = assistant_spans(chat, tokenizer, text, where)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        tokens, learned = encoded.input_ids, [_touches(offset, spans) for offset in encoded.offset_mapping]

    if not any(learned):
        raise SQFTError(f"{where} has no token of an assistant to learn: give its answer a text")
    return tokens, learned


def assistant_spans(chat: Chat, tokenizer: Any, text: str, where: str) -> list[Span]:
    """Where in the rendered conversation `text` the assistant speaks: (first character, end) of each of its turns."""
    spans = []
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant":
            continue
        if index == 0:
            raise SQFTError(f"{where}: the first message is the assistant's: begin with what it answers")

        # the conversation up to the turn, and with it
        before = Chat(chat.messages[:index], chat.tools)
        start = _render(before, tokenizer, where, add_generation_prompt=True)
        turn = _render(Chat(chat.messages[: index + 1], chat.tools), tokenizer, where).rstrip()
        content = (message.get("content") or "").strip()
        if content and not text.startswith(turn):
            # some templates write the last turn otherwise than those before it (Qwen3: with an empty thought)
            turn = start + content + turn.rpartition(content)[2]

        if not (text.startswith(start) and text.startswith(turn) and len(turn) > len(start)):
            raise SQFTError(
                f"{where}: the chat template writes turn {index + 1} otherwise within the whole conversation, so its "
                "tokens cannot be told apart: cut the conversation after it, or mark the assistant's text in the "
                "template with {% generation %}"
            )
        spans.append((len(start), len(turn)))
    return spans


def _touches(token: Span, spans: Sequence[Span]) -> bool:
    start, end = token  # byte-level tokenizers leave white space out at the start, so of blanks only the end is known
    return any(first < end and (start < last or start == end == last) for first, last in spans)


def _render(chat: Chat, tokenizer: Any, where: str, **options: Any) -> Any:
    # transformers drops keys without a value from 5.24 on; here they are dropped whatever its version
    messages = [{key: value for key, value in message.items() if value is not None} for message in chat.messages]
    tools = None if chat.tools is None else list(chat.tools)
    try:
        return tokenizer.apply_chat_template(messages, tools=tools, **({"tokenize": False} | options))
    except Exception as error:  # a template is a program: it may end in any way
        raise SQFTError(f"{where}: the chat template refuses the conversation ({error}): correct it") from error
