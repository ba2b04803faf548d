"""Chat templates, and a short training run, for the tests of `sqft train`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune import train as training
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.trainer import AnswerTrainer

EXAMPLES = [
    Example(f"Question: what follows {'one and ' * (n % 5)}{n}?\nAnswer:", f" {n + 1}{' it is' * (n % 3)}")
    for n in range(40)
]
ADAPTER = {"rank": 8, "alpha": 16, "rank_choices": [8, 6, 4]}
TRAINING = {"steps": 10, "batch_size": 8, "learning_rate": 1e-2, "dtype": "float32"}
"""In float32 on every machine, for tolerances that float32 keeps: "auto" is bfloat16 where AMX makes it fast."""
FILES = ("adapter_model.safetensors", "sqft_rank_history.jsonl")

PLAIN = """{%- for m in messages -%}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor -%}{%- if add_generation_prompt -%}<|assistant|>
{% endif -%}"""
MARKED = """{%- for m in messages -%}<|{{ m.role }}|>
{% if m.role == "assistant" %}{% generation %}{{ m.content }}<|end|>{% endgeneration %}
{% else %}{{ m.content }}<|end|>
{% endif %}{% endfor -%}{%- if add_generation_prompt -%}<|assistant|>
{% endif -%}"""
THINKING = """{%- for m in messages -%}<|{{ m.role }}|>
{% if m.role == "assistant" and loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>
{% endfor -%}{%- if add_generation_prompt -%}<|assistant|>
{% endif -%}"""
"""As Qwen3's: the last answer is written otherwise than those before it."""
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}" + PLAIN
TALK = [
    {"role": "system", "content": "Be  short."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four.\n\n  Or: 4 "},
    {"role": "user", "content": "assistant, what is the  capital?"},
    {"role": "assistant", "content": " Paris"},
]


def lines(path: Path, *rows: Any) -> Path:
    """Writes a JSONL; rows of text stand there as they are."""
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def train(base: Path, out: Path, *, examples=EXAMPLES, adapter: Any = None, tuner="sqft", **changes: Any) -> dict:
    """`train_adapter` with the settings above, `changes` to TRAINING."""
    held_out = changes.pop("held_out", ())
    settings = AdapterSettings.make({**ADAPTER, **(adapter or {})})
    return training.train_adapter(
        base, out, examples, settings, TrainSettings.make({**TRAINING, **changes}), tuner=tuner, eval_examples=held_out
    )


@contextmanager
def killing(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[None]:
    """What trains within ends, as with Ctrl-C, when it is to compute its loss for the `call`th time."""
    original, calls = AnswerTrainer.compute_loss, []

    def stop(self, *inner: Any, **options: Any):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(self, *inner, **options)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerTrainer, "compute_loss", stop)
        with pytest.raises(KeyboardInterrupt):
            yield


def killed(monkeypatch: pytest.MonkeyPatch, call: int, *args: Any, **kwargs: Any) -> None:
    """A run that ends at that call."""
    with killing(monkeypatch, call):
        train(*args, **kwargs)
