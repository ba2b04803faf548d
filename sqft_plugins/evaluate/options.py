"""Log-likelihood of answer options by a transformers model, the prompt computed once for all its options.

Prompts of equal length go through together without any padding, and fill the attention cache; each option then goes on
from its prompt's rows of the cache. Options are padded on the right, where a causal model does not look. No mask and no
position is given, so that this holds for rotary, learned and ALiBi positions and for sliding windows alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.errors import SQFTError
from sqft_plugins.key_values import NAMES, cache_in
from sqft_plugins.structure import head_sees
from sqft_plugins.tune.data import IGNORED, padded
from sqft_plugins.tune.loss import answer_logits

Score = tuple[float, bool | None]
"""The log-probability of a continuation, and whether greedy decoding writes it (None: not known)."""


@dataclass(frozen=True)
class Question:
    """Token ids. context: the prompt, at least one token. options: its continuations, each at least one token."""

    context: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Of the prompt with its longest option."""
        return len(self.context) + max(map(len, self.options))


def batches(questions: Sequence[Question], rows: int) -> list[list[int]]:
    """Places of the questions that go through together: of one prompt length, at most `rows` options (or one question).
    The longest come first, so that what does not fit in memory fails at once and the time that is left is not
    underestimated."""
    order = sorted(range(len(questions)), key=lambda place: (-len(questions[place].context), -questions[place].tokens))
    found: list[list[int]] = []
    length, filled = -1, 0
    for place in order:
        question = questions[place]
        if len(question.context) != length or filled + len(question.options) > rows:
            found.append([])
            length, filled = len(question.context), 0
        found[-1].append(place)
        filled += len(question.options)
    return found


@torch.no_grad()
def score_options(model: Any, questions: Sequence[Question]) -> list[list[Score]]:
    """For each question the score of each option. The prompts must have one length (see `batches`)."""
    if len({len(question.context) for question in questions}) > 1:
        raise ValueError("questions have prompts of different lengths: cut them with batches()")
    head, device = model.get_output_embeddings(), next(model.parameters()).device
    options = [option for question in questions for option in question.options]
    owner = [place for place, question in enumerate(questions) for _ in question.options]

    # each prompt once, all but its last token, into the cache
    inputs: dict[str, Any] = {}
    if len(questions[0].context) > 1:
        prompts = torch.tensor([question.context[:-1] for question in questions], device=device)  # [questions, tokens]
        with head_sees(head, lambda hidden: hidden[:, :0]):  # a prompt that only fills the cache needs no logits
            inputs = continued(model, model(input_ids=prompts, use_cache=True))
        for cache in inputs.values():
            cache.batch_select_indices(torch.tensor(owner, device=device))  # one copy for each option

    # the prompt's last token stands before each option: its hidden state predicts the option's first token
    rows = [(questions[place].context[-1], *option) for place, option in zip(owner, options, strict=True)]
    inputs["input_ids"] = padded(rows, 0).to(device)  # [options, 1 + tokens]
    labels = padded([(IGNORED, *option) for option in options], IGNORED).to(device)
    logits, targets = answer_logits(model, head, inputs, labels)  # [all option tokens, vocabulary], [all option tokens]
    chosen, greedy = token_scores(logits, targets)

    # tokens → options → questions
    lengths = list(map(len, options))
    scores: list[list[Score]] = [[] for _ in questions]
    for place, part, right in zip(owner, chosen.split(lengths), greedy.split(lengths), strict=True):
        scores[place].append((float(part.sum()), bool(right.all())))
    return scores


def continued(model: Any, output: Mapping[str, Any]) -> dict[str, Any]:
    """The cache in the output of a model that was asked to keep one, as the argument for its next call. Raises
    SQFTError where there is none: the next call would not know what came before."""
    cache = cache_in(output)
    if not cache:
        raise SQFTError(
            f"{type(model).__name__} returns {', '.join(output)} and no {' or '.join(NAMES)}: log-probabilities of "
            "options and of long texts need a cache that transformers shares between calls; score generated answers"
        )
    return cache


def token_scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """logits [tokens, vocabulary], targets [tokens] → log-probability of each target (float32 [tokens]) and whether it
    is the likeliest token (bool [tokens]), on the CPU."""
    logits = logits.float()
    chosen = logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(1)
    return chosen.cpu(), (logits.argmax(1) == targets).cpu()


def split_pair(tokenize: Callable[[str], list[int]], context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of what goes on after it, cut as lm-evaluation-harness cuts them: the continuation is
    what the tokens of the whole text have more than those of the prompt; spaces at the prompt's end belong to it."""
    bare = context.rstrip()
    if bare:
        continuation, context = context[len(bare) :] + continuation, bare
    before = tokenize(context)
    return before, tokenize(context + continuation)[len(before) :]
