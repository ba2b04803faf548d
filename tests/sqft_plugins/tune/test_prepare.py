"""What a run trains on: lengths, epochs, what is held out, and settings that do not fit."""

from __future__ import annotations

import json
import re

import pytest
from helpers_train import EXAMPLES

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune import TrainSettings
from sqft_plugins.tune.data import split
from sqft_plugins.tune.examples import Example, read_examples
from sqft_plugins.tune.prepare import prepare


def lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


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
