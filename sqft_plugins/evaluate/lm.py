"""A candidate as a model of lm-evaluation-harness. Importing this file imports lm_eval."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.candidate import Candidate

NEW_TOKENS = 256
"""Tokens of a completion where a task does not say; also lm-eval's."""
LONGEST = 2048
"""Tokens of a window where the model has no limit; also lm-eval's."""


class CandidateLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """Requests of lm-eval's tasks, answered by a Candidate: one class for every runtime."""

    def __init__(self, candidate: Candidate):
        super().__init__()
        self.candidate = candidate

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        scores = self.candidate.likelihoods([_pair(request) for request in requests])
        return [(score, bool(greedy)) for score, greedy in scores]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Requests of one setting go together. Raises SQFTError for a request that is not greedy."""
        places: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(settings(request), []).append(place)

        found = [""] * len(requests)
        for (new_tokens, stop), part in places.items():
            prompts = [requests[place].args[0] for place in part]
            for place, text in zip(part, self.candidate.generate(prompts, new_tokens, stop), strict=True):
                found[place] = text
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [self.candidate.rolling(text, partial(self._windows, text)) for (text,) in (r.args for r in requests)]

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        # as lm-eval's own hf model: its tokens begin with <bos>, and <bos> stands before the first window once more
        start = self.candidate.tokenize("")
        if not start:
            raise SQFTError(f"{self.candidate.name} has no token to begin a text with: this task cannot be run on it")
        tokens = self.candidate.tokenize(text)
        longest = self.candidate.context or LONGEST
        windows = get_rolling_token_windows(tokens, prefix_token=start[0], max_seq_len=longest, context_len=1)
        return [make_disjoint_window(window) for window in windows]


def question_of(request: Instance) -> tuple[str, Any, Any, *tuple[Any, ...]] | None:
    """A request as `Candidate.check_new` takes it; None for a request that may have any length."""
    if request.request_type == "loglikelihood":
        return ("likelihood", *_pair(request))
    if request.request_type == "generate_until":
        new_tokens, stop = settings(request)
        return ("completion", request.args[0], new_tokens, list(stop))
    return None


def settings(request: Instance) -> tuple[int, tuple[str, ...]]:
    """Most new tokens and the stop texts of a request to generate. Raises SQFTError for sampling."""
    how: dict[str, Any] = dict(request.args[1])
    if how.get("do_sample") and how.get("temperature", 1.0) > 0:
        raise SQFTError(
            f"task {request.task_name} samples its answers (do_sample): sqft eval is greedy, choose another"
        )
    stop: str | Sequence[str] = how.get("until") or ()
    most = how.get("max_gen_toks", how.get("max_new_tokens", how.get("max_tokens", NEW_TOKENS)))
    return int(most), (stop,) if isinstance(stop, str) else tuple(stop)


def _pair(request: Instance) -> tuple[str, str]:
    return str(request.args[0]), str(request.args[1])
