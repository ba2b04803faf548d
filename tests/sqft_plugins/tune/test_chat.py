"""Conversations: every turn of the assistant is learned, and nothing else."""

from __future__ import annotations

import re

import pytest
from helpers_train import MARKED, PLAIN, STRICT, TALK, THINKING, lines
from tokenizers import processors

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.chat import Chat
from sqft_plugins.tune.data import IGNORED, tokenize
from sqft_plugins.tune.examples import read_examples

SPACES = str.maketrans({"Ġ": " ", "Ċ": "\n", "▁": " "})


def chat_tokenizer(make, kind: str, template: str):
    tokenizer = make("byte-fallback" if kind == "byte-fallback" else "byte-level")
    if kind == "trimmed":  # as GPT-2's: offsets without the white space before a word
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.chat_template = template
    return tokenizer


def naive_learned(tokenizer, tokens: list[int], text: str) -> list[bool]:
    """Whether each token has a character between the header of an assistant and the end of its turn: the tokens of
    these tokenizers are the text's pieces, so their lengths tell where they are."""
    answers = [match.span(1) for match in re.finditer(r"<\|assistant\|>\n(.*?<\|end\|>)", text, re.DOTALL)]
    learned, place = [], 0
    for token in tokenizer.convert_ids_to_tokens(tokens):
        byte = re.fullmatch("<0x(..)>", token)
        piece = chr(int(byte[1], 16)) if byte else token.translate(SPACES)
        start, place = place, place + len(piece)
        learned.append(any(first < place and start < last for first, last in answers))
    assert place == len(text)
    return learned


@pytest.mark.parametrize("kind", ["byte-level", "byte-fallback", "trimmed"])
@pytest.mark.parametrize(
    "template", [PLAIN, MARKED, THINKING, "{{ bos_token }}" + PLAIN.replace("content", "content|trim")]
)
def test_of_a_conversation_every_turn_of_the_assistant_is_learned_and_nothing_else(tiny_tokenizer, kind, template):
    tokenizer = chat_tokenizer(tiny_tokenizer, kind, template)
    (row,) = tokenize([Chat(TALK)], tokenizer, 500)
    text = tokenizer.apply_chat_template(TALK, tokenize=False)
    assert row["input_ids"] == tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
    learned = [label != IGNORED for label in row["labels"]]
    if template != MARKED or kind != "trimmed":  # transformers itself loses blanks of trimmed offsets there
        assert learned == naive_learned(tokenizer, row["input_ids"], text)
    assert 10 < sum(learned) < len(learned) - 20
    assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True))


@pytest.mark.parametrize(
    ("template", "talk", "message"),
    [
        (None, TALK, "is a conversation, but the tokenizer has no chat template: give one with --chat-template"),
        (STRICT, TALK, "the chat template refuses the conversation .*no system role here"),
        (PLAIN, TALK[2:], "the first message is the assistant's"),
        (PLAIN + "{{ messages|length }}", TALK, "writes turn 3 otherwise within the whole conversation"),
        (THINKING, [TALK[1], {"role": "assistant", "content": ""}, *TALK[3:]], "writes turn 2 otherwise"),
        (PLAIN + "{{ 1 / 0 }}", TALK, "the chat template refuses the conversation .*division"),
    ],
)
def test_a_conversation_that_cannot_be_learned_exactly_is_refused(tiny_tokenizer, template, talk, message) -> None:
    with pytest.raises(SQFTError, match=f"talk.jsonl line 3.*{message}"):
        tokenize([Chat(talk, where="talk.jsonl line 3")], chat_tokenizer(tiny_tokenizer, "", template), 500)


def test_tools_reach_the_template(tiny_tokenizer) -> None:
    tokenizer = chat_tokenizer(tiny_tokenizer, "", "{% if tools %}{{ tools[0].name }} {% endif %}" + PLAIN)
    (row,) = tokenize([Chat(TALK, tools=[{"name": "calculator"}])], tokenizer, 500)
    assert tokenizer.decode(row["input_ids"]).startswith("calculator")


@pytest.mark.parametrize("content", [{"content": None}, {}])
def test_a_turn_that_only_calls_a_tool_is_learned_as_the_template_writes_it(tiny_tokenizer, tmp_path, content) -> None:
    call = {"role": "assistant", **content, "tool_calls": [{"function": {"name": "calculator"}}]}
    talk = [TALK[1], call, {"role": "tool", "content": "4"}, TALK[4]]
    written = "{{ m.content if m.content is defined else m.tool_calls[0].function.name }}"
    tokenizer = chat_tokenizer(tiny_tokenizer, "", PLAIN.replace("{{ m.content }}", written))
    (row,) = tokenize(read_examples(lines(tmp_path / "d.jsonl", {"messages": talk})), tokenizer, 500)
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == "calculator<|end|> Paris<|end|>"
