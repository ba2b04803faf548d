"""Behaviours of transformers that this package relies on, tried out. Each returns why it does not hold, or None."""

from __future__ import annotations

from typing import Any

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{% for call in message.tool_calls or [] %}"
    "[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}|{% endfor %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": " 1 + 1? "},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2"},
]


def chat_renders() -> str | None:
    """Whether a tokenizer does nothing before it renders: a tool call has no text, and a template may write None."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.chat_template_utils import render_jinja_template

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    wanted = tokenizer.apply_chat_template(MESSAGES, chat_template=TEMPLATE, tokenize=False)
    found = render_jinja_template([MESSAGES], chat_template=TEMPLATE)[0][0]
    return None if found == wanted else f"render_jinja_template gives {found!r}, apply_chat_template {wanted!r}"
