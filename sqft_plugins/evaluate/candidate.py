"""The model under evaluation: asked with texts, on any runtime, and never asked twice."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from types import MappingProxyType
from typing import Any

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.answers import Answers
from sqft_plugins.evaluate.options import Question, Score, batches, split_pair
from sqft_plugins.evaluate.run import BROKEN, Perplexity, perplexity_of
from sqft_plugins.evaluate.transformers_engine import BATCH, cut
from sqft_plugins.plugins.protocols import Session
from sqft_plugins.progress import track

Pair = tuple[str, str]
"""(prompt, continuation)."""


class Candidate:
    """A model that is loaded when it is first needed, with the memory of what it answered. `asked` counts the questions
    that went to the model itself.

    name: for messages.
    opener: loads the model; called when an answer is needed that `answers` does not have.
    answers: what the model answered before, None to remember nothing.
    batch_size: options, or prompts, that go through together.
    runtime: what computes, for the report: its name, and where they matter dtype and kernel.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[], Session],
        answers: Answers | None = None,
        batch_size: int = BATCH,
        runtime: Mapping[str, Any] = MappingProxyType({}),
    ):
        self.name, self.batch_size, self.runtime = name, batch_size, runtime
        self.asked = 0
        self._opener, self._answers = opener, answers
        self._session: Session | None = None
        self._tokens: dict[str, list[int]] = {}

    @property
    def session(self) -> Session:
        if self._session is None:
            self._session = self._opener()
            if hasattr(self._session, "batch_size"):
                self._session.batch_size = self.batch_size
        return self._session

    @property
    def tells_greedy(self) -> bool:
        """Whether this runtime knows if a continuation is the greedy one."""
        return hasattr(self.session, "score")

    @property
    def context(self) -> int | None:
        """The longest text in tokens, None for no limit."""
        return getattr(self.session, "context", None)

    def tokenize(self, text: str) -> list[int]:
        if text not in self._tokens:
            self._tokens[text] = self.session.tokenize(text)
        return self._tokens[text]

    # --- asking ---

    def likelihoods(self, pairs: Sequence[Pair], what: str = "options") -> list[Score]:
        """The score of each continuation. Raises SQFTError for a pair that does not fit the context."""
        found: list[Score | None] = [self._known("likelihood", *pair) for pair in pairs]

        # the pairs of one prompt without an answer are one question
        places: dict[str, list[int]] = {}  # prompt → its pairs
        for place, (score, (context, _)) in enumerate(zip(found, pairs, strict=True)):
            if score is None:
                places.setdefault(context, []).append(place)
        asked = list(places.values())

        questions = [self._question([pairs[place] for place in part]) for part in asked]
        for index, scores in self._scored(questions, what):
            for place, score in zip(asked[index], scores, strict=True):
                if math.isnan(score[0]):
                    raise SQFTError(f"{self.name} gives {pairs[place][1]!r} no number as its log-likelihood: {BROKEN}")
                found[place] = score
                self._remember(score, "likelihood", *pairs[place])
        return [(float(score[0]), score[1]) for score in found if score is not None]

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """The greedy completion of each prompt in order, as a Session's; those that are not known are asked for all at
        once, the longest first."""
        how = (max_new_tokens, list(stop))
        found: list[str | None] = [self._known("completion", prompt, *how) for prompt in prompts]
        missing = [place for place, text in enumerate(found) if text is None]
        missing.sort(key=lambda place: -len(prompts[place]))

        if missing:
            answers = self._completed([prompts[place] for place in missing], max_new_tokens, stop)
            for place, text in zip(missing, track(answers, "completions", len(missing)), strict=True):
                found[place] = text
                self.asked += 1
                self._remember(text, "completion", prompts[place], *how)
        return iter([text for text in found if text is not None])

    def perplexity(self, text: str, max_tokens: int) -> Perplexity:
        """As `perplexity_of`."""
        asked = (text, max_tokens)
        return Perplexity(*self._once(lambda: astuple(perplexity_of(self.session, *asked)), "perplexity", *asked))

    def rolling(self, text: str, windows: Callable[[], Iterable[tuple[list[int], list[int]]]]) -> float:
        """The log-probability of a whole text, in the windows (context, continuation) of its tokens."""

        def compute() -> float:
            total = sum(self._sum(context, continuation) for context, continuation in windows())
            if math.isnan(total):
                raise SQFTError(f"{self.name} gives a text no number as its log-likelihood: {BROKEN}")
            return total

        return float(self._once(compute, "rolling", text))

    def check_new(self, where: str, remedy: str, kind: str, *args: Any) -> bool:
        """Whether a question has no known answer yet; then the model is loaded.

        where, remedy: of the question, for the message.
        kind, args: "likelihood" with prompt and continuation, or "completion" with prompt, most new tokens and stops.

        Raises SQFTError for a question that does not fit the context.
        """
        if self._known(kind, *args) is not None:
            return False
        if kind == "likelihood":
            length = self._question([(args[0], args[1])]).tokens
        else:
            length = len(self.tokenize(args[0])) + args[1]
        if self.context is not None and length > self.context:
            raise SQFTError(f"{where} takes {length} tokens, {self.name} has a context of {self.context}: {remedy}")
        return True

    def close(self) -> None:
        """Frees the model and the file of the answers. A closed candidate can be asked again: it opens both again."""
        if self._session is not None:
            self._session.close()
        self._session = None
        if self._answers is not None:
            self._answers.close()

    # --- inside ---

    def _once(self, compute: Callable[[], Any], kind: str, *args: Any) -> Any:
        """The known answer to a question, else the one that `compute` finds by asking the model."""
        answer = self._known(kind, *args)
        if answer is None:
            answer = compute()
            self.asked += 1
            self._remember(answer, kind, *args)
        return answer

    def _known(self, kind: str, *args: Any) -> Any:
        return None if self._answers is None else self._answers.get(kind, *args)

    def _remember(self, answer: Any, kind: str, *args: Any) -> None:
        if self._answers is not None:
            self._answers.put(answer, kind, *args)

    def _question(self, pairs: Sequence[Pair]) -> Question:
        cuts = [split_pair(self.tokenize, *pair) for pair in pairs]
        if not cuts[0][0]:
            raise SQFTError(
                f"{self.name} has no token to begin a text with and the prompt is empty: give the task a prompt"
            )
        for (_, continuation), pair in zip(cuts, pairs, strict=True):
            if not continuation:
                raise SQFTError(f"option {pair[1]!r} adds no token to its prompt: correct the task's options")
        # prompts are one text, so their tokens are equal
        return Question(tuple(cuts[0][0]), tuple(tuple(continuation) for _, continuation in cuts))

    def _scored(self, questions: Sequence[Question], what: str) -> Iterator[tuple[int, list[Score]]]:
        """(place, scores of the options) of each question, in the order of the work."""
        if not questions:
            return

        def work() -> Iterator[tuple[int, list[Score]]]:
            score = getattr(self.session, "score", self._one_by_one)
            for places in batches(questions, self.batch_size):
                yield from zip(places, score([questions[place] for place in places]), strict=True)

        self.asked += sum(len(question.options) for question in questions)
        yield from track(work(), what, len(questions))

    def _one_by_one(self, questions: Sequence[Question]) -> list[list[Score]]:
        """For runtimes that only offer `logprobs`: every option with its prompt; whether it is greedy is not known."""
        return [[(self._sum(question.context, option), None) for option in question.options] for question in questions]

    def _sum(self, context: Sequence[int], option: Sequence[int]) -> float:
        return float(self.session.logprobs([*context, *option])[-len(option) :].double().sum())

    def _completed(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str]) -> Iterator[str]:
        generate: Callable[..., Iterator[str]] = self.session.generate
        if stop and "stop" in inspect.signature(generate).parameters:
            return generate(prompts, max_new_tokens, stop=stop)
        return (cut(text, stop) for text in generate(prompts, max_new_tokens))
