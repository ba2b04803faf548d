"""What a configuration is scored by, on a model that is loaded once and whose ranks are switched in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sqft_plugins.evaluate.run import MAX_NEW_TOKENS
from sqft_plugins.evaluate.transformers_engine import TransformersSession
from sqft_plugins.plugins.protocols import Item, Task
from sqft_plugins.search.paired import Direction
from sqft_plugins.tune.data import IGNORED, batches_by_length, tokenize
from sqft_plugins.tune.examples import Example
from sqft_plugins.tune.loss import answer_logits


@dataclass(frozen=True)
class Prepared:
    """Questions made ready once: their tokens, in batches of about equal length. order: the place of each row of the
    batches among the questions."""

    items: Sequence[Item]
    batches: Sequence[dict[str, Tensor]]
    order: Sequence[int]


def prepare(items: Sequence[Item], tokenizer: Any, max_length: int, batch_size: int) -> Prepared:
    """Raises SQFTError for a question that is longer than `max_length` tokens."""
    rows = tokenize([Example(item.prompt, item.answer) for item in items], tokenizer, max_length)
    return Prepared(items, *batches_by_length(rows, batch_size, tokenizer.pad_token_id or 0))


class AnswerLikelihood:
    """The negative log-likelihood of the gold answer: the mean over its tokens, the end-of-text token included."""

    name = "nll"
    direction: Direction = "minimize"
    unit = "nats per answer token"

    @torch.no_grad()
    def scores(self, model: Any, tokenizer: Any, prepared: Prepared) -> list[float]:
        head, device = model.get_output_embeddings(), next(model.parameters()).device
        found: list[float] = []
        for batch in prepared.batches:
            inputs = {key: value.to(device) for key, value in batch.items()}
            labels = inputs.pop("labels")
            logits, targets = answer_logits(model, head, inputs, labels)  # [answers, vocabulary], [answers]
            losses = F.cross_entropy(logits.float(), targets, reduction="none").double().cpu()
            lengths = (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
            found += [float(part.mean()) for part in losses.split(lengths)]
        return in_order(found, prepared.order)


class AnswerAccuracy:
    """Whether the greedy completion is right, as `task` judges it: 1 or 0."""

    name = "accuracy"
    direction: Direction = "maximize"
    unit = "of the answers right"

    def __init__(self, task: Task, batch_size: int):
        self.task, self.batch_size = task, batch_size

    def scores(self, model: Any, tokenizer: Any, prepared: Prepared) -> list[float]:
        session = TransformersSession(model, tokenizer, self.batch_size)
        items = [prepared.items[index] for index in prepared.order]  # of about equal length, so little is padded
        answers = session.generate([item.prompt for item in items], MAX_NEW_TOKENS)
        right = [float(self.task.is_correct(item, text)) for item, text in zip(items, answers, strict=True)]
        return in_order(right, prepared.order)


Objective = AnswerLikelihood | AnswerAccuracy
"""What a configuration is scored by. name: as in `--objective`. direction: Optuna's. unit: of the score, for people.
scores: of each question, in their order."""


def in_order(values: Sequence[float], order: Sequence[int]) -> list[float]:
    """values[i] belongs to place order[i]."""
    placed = dict(zip(order, values, strict=True))
    return [placed[place] for place in range(len(placed))]
