"""What `sqft train` reads: prompts with completions, conversations, text; and what of it is learned."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # importlib mode keeps test folders off the path
from helpers_train import EXAMPLES, MARKED, PLAIN, STRICT, THINKING
from tokenizers import processors

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune import TrainSettings
from sqft_plugins.tune.chat import Chat, read_template
from sqft_plugins.tune.data import IGNORED, Example, read_examples, read_jsonl, split, tokenize
from sqft_plugins.tune.prepare import prepare

TALK = [
    {"role": "system", "content": "Be  short."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four.\n\n  Or: 4 "},
    {"role": "user", "content": "assistant, what is the  capital?"},
    {"role": "assistant", "content": " Paris"},
]
SPACES = str.maketrans({"Ġ": " ", "Ċ": "\n", "▁": " "})


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


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


def test_a_turn_that_only_calls_a_tool_is_learned_as_the_template_writes_it(tiny_tokenizer, tmp_path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "calculator"}}]}
    talk = [TALK[1], call, {"role": "tool", "content": "4"}, TALK[4]]
    written = "{{ m.content if m.content is not none else m.tool_calls[0].function.name }}"
    tokenizer = chat_tokenizer(tiny_tokenizer, "", PLAIN.replace("{{ m.content }}", written))
    (row,) = tokenize(read_examples(lines(tmp_path / "d.jsonl", {"messages": talk})), tokenizer, 500)
    assert tokenizer.decode([label for label in row["labels"] if label != IGNORED]) == "calculator<|end|> Paris<|end|>"


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


# --- what the run takes of it ---


def prepared(tokenizer, examples=EXAMPLES, held_out=(), text=(), processes=1, context=None, **settings):
    training = TrainSettings.make({"batch_size": 8, **settings})
    return prepare(examples, text, held_out, tokenizer, training, processes, context)


def test_a_long_example_is_an_error_or_left_out_but_never_cut(tiny_tokenizer, tmp_path) -> None:
    tokenizer = tiny_tokenizer("byte-level")
    file = lines(tmp_path / "d.jsonl", {"text": "short"}, {"text": "long " * 30}, {"text": "short too"})
    with pytest.raises(SQFTError, match=r"d.jsonl line 2 has \d+ tokens, max_length=16: shorten it or raise"):
        prepared(tokenizer, read_examples(file), max_length=16)
    data = prepared(tokenizer, read_examples(file), max_length=16, long="drop")
    assert (data.examples, data.dropped) == (2, 1)
    with pytest.raises(SQFTError, match="every example is longer than max_length=8"):
        prepared(tokenizer, read_examples(file)[1:2], max_length=8, long="drop")
    with pytest.raises(SQFTError, match=r"d.jsonl line 2 has \d+ tokens, the model's context is 16: shorten it"):
        prepared(tokenizer, read_examples(file), context=16)
    data = prepared(tokenizer, read_examples(file), context=16, long="drop")
    assert (data.examples, data.dropped) == (2, 1)


def test_epochs_are_passes_over_the_examples(tiny_tokenizer) -> None:
    tokenizer = tiny_tokenizer("byte-level")
    data = prepared(tokenizer, epochs=2)
    assert data.training.steps == 10  # 2 * 40 / 8
    seen = [tuple(row["input_ids"]) for row in data.rows]
    assert all(seen.count(key) == 2 for key in set(seen))
    text = [Example("", "general text")]
    assert prepared(tokenizer, epochs=1, text=text, text_fraction=0.5).training.steps == 10  # four of a batch are text


def test_a_share_is_held_out_by_the_seed(tiny_tokenizer) -> None:
    training, held_out = split(EXAMPLES, 0.25, seed=1)
    assert len(held_out) == 10
    assert sorted(training + held_out, key=EXAMPLES.index) == EXAMPLES
    assert (training, held_out) == split(EXAMPLES, 0.25, 1) != split(EXAMPLES, 0.25, 2)
    data = prepared(tiny_tokenizer("byte-level"), eval_fraction=0.25, steps=25)
    assert (data.examples, len(data.held_out), data.training.eval_every) == (30, 10, 3)
    assert not {tuple(row["input_ids"]) for row in data.rows} & {tuple(row["input_ids"]) for row in data.held_out}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 5, "epochs": 2}, "steps=5 and epochs=2 are two lengths of one run"),
        ({"gradient_accumulation": 3}, "batch_size=8 cannot be cut into gradient_accumulation=3"),
        ({"processes": 3}, "batch_size=8 is that of all 3 processes and cannot be cut into 3"),
        ({"keep": "best"}, "keep=best needs held-out examples: give --eval-data or --eval-fraction"),
        ({"eval_every": 5}, "eval_every=5 needs held-out examples"),
        ({"eval_fraction": 0.1, "held_out": EXAMPLES}, "eval_fraction=0.1 beside --eval-data"),
        ({"eval_fraction": 0.1, "examples": EXAMPLES[:1]}, "eval_fraction=0.1 of 1 example"),
        ({"text_fraction": 0.99}, "text_fraction=0.99 of batch_size=8 leaves no example"),
        ({"text_fraction": 0.5}, "text_fraction=0.5, but the general text has no piece of a dozen words"),
        ({"examples": [Example("", "")]}, "example 1 has no token to learn"),
        ({"seed": -1}, "seed=-1: input should be greater than or equal to 0"),
        ({"epochs": float("inf")}, "epochs=inf: input should be a finite number"),
        ({"schedule": "cosin"}, "schedule='cosin': input should be 'cosine', 'linear' or 'constant'"),
    ],
)
def test_settings_that_do_not_fit_are_named(tiny_tokenizer, settings, message) -> None:
    with pytest.raises(SQFTError, match=re.escape(message)):
        prepared(tiny_tokenizer("byte-level"), **settings)
