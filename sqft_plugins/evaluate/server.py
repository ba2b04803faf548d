"""A running vLLM server as a runtime, over its OpenAI completions and its `/tokenize`.

lm-evaluation-harness has a client of its own (`local-completions`). It puts no `<bos>` before a text, which ruins
Gemma, and cuts a prompt that is too long without stopping; this one asks the server how it tokenizes a text.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.errors import SQFTError, nearest
from sqft_plugins.evaluate.options import Question, Score

PROMPTS = 32
"""Prompts in one request; the server batches them."""
TIMEOUT = 600.0
"""Seconds for one request."""


class ServerSession:
    """A model that a vLLM server offers. Where the server wants a key, it is OPENAI_API_KEY.

    url: such as http://localhost:8000, with or without /v1.
    model: a name that the server offers, such as `base` or `math@heuristic`; None where it offers one.

    Raises SQFTError for a server that does not answer or does not offer the model.
    """

    def __init__(self, url: str, model: str | None = None):
        self.url = url.rstrip("/").removesuffix("/v1")
        listed = self._call("/v1/models")
        if not isinstance(listed, dict) or not isinstance(listed.get("data"), list):
            raise SQFTError(f"--server {url} lists no models, so it is no vLLM: check the address")
        offered = {entry["id"]: entry for entry in listed["data"]}
        if model is None and len(offered) != 1:
            raise SQFTError(f"--server {url} offers {len(offered)} models: choose with --model {' | '.join(offered)}")
        self.model = next(iter(offered)) if model is None else model
        if self.model not in offered:
            raise SQFTError(f"--model {self.model!r} is not served by {url}: {nearest(self.model, offered)}")
        longest = offered[self.model].get("max_model_len")
        if longest is None:  # an adapter does not tell: its base does
            longest = max((entry.get("max_model_len") or 0 for entry in offered.values()), default=0) or None
        self.context: int | None = None if longest is None else longest - 1  # a request writes at least one token

    def tokenize(self, text: str) -> list[int]:
        return list(self._call("/tokenize", {"model": self.model, "prompt": text})["tokens"])

    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """The greedy completion of each prompt in order; it ends before the first of the `stop` texts."""
        for choice in self._complete(prompts, max_tokens=max_new_tokens, stop=list(stop)):
            yield choice["text"]

    def logprobs(self, tokens: Sequence[int]) -> Tensor:
        return torch.tensor([score for score, _ in self._echo([tokens])[0]])

    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """The scores of the options of the questions; the server's own prefix cache spares the prompts."""
        rows = [(*question.context, *option) for question in questions for option in question.options]
        echoed = iter(self._echo(rows))
        return [[_total(next(echoed)[-len(option) :]) for option in question.options] for question in questions]

    def close(self) -> None:
        """The server goes on."""

    def _echo(self, rows: Sequence[Sequence[int]]) -> list[list[tuple[float, bool]]]:
        """For each row of token ids: log-probability and whether it is the likeliest, of each token after the first."""
        found = []
        for row, choice in zip(rows, self._complete(rows, max_tokens=1, logprobs=1, echo=True), strict=True):
            given = choice["logprobs"]
            pairs = zip(given["token_logprobs"][1 : len(row)], given["top_logprobs"][1 : len(row)], strict=True)
            found.append([(score, score >= max(top.values())) for score, top in pairs])
        return found

    def _complete(self, prompts: Sequence[Any], **settings: Any) -> Iterator[dict[str, Any]]:
        """The choices of the prompts (texts or token ids), in order."""
        for start in range(0, len(prompts), PROMPTS):
            part = list(prompts[start : start + PROMPTS])
            body = {"model": self.model, "prompt": part, "temperature": 0, "seed": 0, **settings}
            yield from sorted(self._call("/v1/completions", body)["choices"], key=lambda choice: choice["index"])

    def _call(self, path: str, body: Any = None) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()

        try:
            request = urllib.request.Request(self.url + path, data, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace").strip()[:200]
            raise SQFTError(f"--server {self.url}{path} answers {error.code}: {text}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:  # the last: it died in its answer
            raise SQFTError(
                f"--server {self.url} does not answer ({error}): check the address, or start one with `sqft serve`"
            ) from error


def _total(tokens: Sequence[tuple[float, bool]]) -> Score:
    return sum(score for score, _ in tokens), all(greedy for _, greedy in tokens)
