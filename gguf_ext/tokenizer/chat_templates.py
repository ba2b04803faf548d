"""The prompt of a conversation: the chat template of a GGUF file, rendered as transformers renders that of its model.

llama-cpp-python replaces templates that it recognizes by formatters of its own, gives the others the text of a token of
llama.cpp's choice where the file names none, and gives them names that transformers leaves undefined. So the templates
are kept from it, and transformers' renderer gets what `apply_chat_template` gives it: the file's special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from gguf_ext.arch import Entry
from gguf_ext.errors import GGUFError, RuntimeFailedError
from gguf_ext.reader import GGUFFile
from gguf_ext.tokenizer.keys import SPECIAL_KEYS, TEMPLATE, TOKENS, id_key

DEFAULT, TOOLS = "default", "tool_use"
"""The templates that transformers takes by itself: TOOLS where tools are given and there is one so called."""


class ChatTemplates:
    """path: of the file, for messages. templates: name → text. tokens: what transformers' `special_tokens_map` is."""

    def __init__(self, file: GGUFFile):
        self.path = file.path
        self.templates = {
            key.removeprefix(TEMPLATE).removeprefix(".") or DEFAULT: text
            for key, text in file.metadata.items()
            if (key == TEMPLATE or key.startswith(f"{TEMPLATE}.")) and isinstance(text, str)
        }
        self.tokens = _special_tokens(file.metadata)

    def prompt(
        self, messages: Sequence[Any], tools: Sequence[Any] | None = None, name: str | None = None, **variables: Any
    ) -> str:
        """The text that `apply_chat_template(messages, tools, add_generation_prompt=True)` makes.

        name: of the template; None for transformers' choice. variables: further names that the template may use. Raises
        GGUFError where there is no template or no message, RuntimeFailedError for a template that fails.
        """
        text = self._choose(name, tools)
        if not messages:
            raise GGUFError("a conversation of no messages has no prompt: give at least one message")

        try:
            found = _tokenizer().apply_chat_template(
                list(messages),
                tools=None if tools is None else list(tools),
                chat_template=text,
                add_generation_prompt=True,
                tokenize=False,
                **{**self.tokens, **variables},
            )
        except Exception as error:  # whatever a template does wrong: jinja2's errors, and Python's own
            why = " ".join(str(error).split()) or type(error).__name__
            raise RuntimeFailedError(
                f"the chat template of {self.path} fails ({why[:200]}): use --plain (create_completion), or another"
            ) from error
        return str(found)

    def _choose(self, name: str | None, tools: Sequence[Any] | None) -> str:
        wanted = name or (TOOLS if tools is not None and TOOLS in self.templates else DEFAULT)
        if wanted in self.templates:
            return self.templates[wanted]
        if not self.templates:
            raise GGUFError(
                f"{self.path} has no chat template: complete a text instead (create_completion), or give a chat_format"
            )
        raise GGUFError(
            f"{self.path} has no chat template {wanted!r}, only {', '.join(sorted(self.templates))}: "
            "give chat_format='chat_template.NAME'"
        )


def named_templates(found: Any) -> dict[str, str]:
    """Name → text of what a tokenizer or its JSON file holds as `chat_template`: one text, texts by name, or a list of
    {"name": …, "template": …}."""
    if isinstance(found, str):
        found = {DEFAULT: found}
    if isinstance(found, Sequence):
        found = {item.get("name"): item.get("template") for item in found if isinstance(item, Mapping)}
    items = found.items() if isinstance(found, Mapping) else ()
    return {name: text for name, text in items if isinstance(name, str) and isinstance(text, str) and text}


@cache
def _tokenizer() -> Any:
    """One without tokens: rendering is a method of tokenizers, and does more than the template (from transformers 5.24
    on it leaves out what is None)."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast  # imports much of transformers

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"": 0}, unk_token="")))


def with_tokens(text: str, tokens: Mapping[str, str]) -> str:
    """A template with those of the special `tokens` (name → text) set in front that it names and no key of a GGUF file
    holds, such as an `image_token`: else they would be empty. As it is where it names none, or has a mistake."""
    import jinja2
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template

    others = set(tokens) - {f"{name}_token" for name in SPECIAL_KEYS}
    if not any(name in text for name in others):
        return text
    try:
        named = meta.find_undeclared_variables(_compile_jinja_template(text).environment.parse(text))
    except jinja2.TemplateError:
        return text
    sets = [f"{{% set {name} = {json.dumps(tokens[name], ensure_ascii=False)} %}}" for name in sorted(named & others)]
    return "".join(sets) + "\n" + text if sets else text  # the newline goes with the tag (trim_blocks)


def template_entries(templates: Mapping[str, str]) -> list[Entry]:
    """The metadata of a file, as the gguf package writes it."""
    others = {name: text for name, text in templates.items() if name != DEFAULT}
    entries = [Entry(f"{TEMPLATE}.{name}", text, "string") for name, text in sorted(others.items())]
    if others:
        entries.append(Entry(f"{TEMPLATE}s", sorted(others), "strings"))
    if DEFAULT in templates:
        entries.append(Entry(TEMPLATE, templates[DEFAULT], "string"))
    return entries


def metadata_texts(file: GGUFFile) -> dict[str, str]:
    """What llama.cpp gives of the metadata, whole: arrays left out, everything as text (`gguf_kv_to_str`).
    llama-cpp-python loses the last byte of a value that just fills its buffer, and all of it where one is no UTF-8."""
    return {key: _text(value) for key, value in file.metadata.items() if not isinstance(value, list)}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:f}" if isinstance(value, float) else str(value)


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, str]:
    tokens = metadata.get(TOKENS)
    tokens = tokens if isinstance(tokens, list) else []
    ids = {f"{name}_token": metadata.get(id_key(name)) for name in SPECIAL_KEYS}
    return {name: tokens[id] for name, id in ids.items() if isinstance(id, int) and 0 <= id < len(tokens)}
