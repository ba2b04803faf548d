"""Evaluation with transformers: model folders, float or INT4, with or without an adapter at a rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.elastic import Rank
from sqft_plugins.evaluate.accelerated import accelerate_tuned, check_packable
from sqft_plugins.evaluate.options import Question, Score, continued, score_options, token_scores
from sqft_plugins.hardware import on_fast_device, parse_dtype
from sqft_plugins.kernels.load import load_accelerated

BATCH = 64
"""Prompts, or answer options, that go through the model together."""
CHUNK = 512
"""Tokens of one text that go through together: at most so many rows of logits are in memory."""


class TransformersEngine:
    name = "transformers"

    def opens(self, path: Path) -> bool:
        return path.is_dir()

    def open(
        self,
        path: Path,
        adapter: Path | None = None,
        rank: Rank = "max",
        dtype: str = "fast",
        batch_size: int = BATCH,
        accelerate: bool = False,
    ) -> TransformersSession:
        """Loads a model folder.

        adapter: a folder of any installed tuner, at `rank`.
        dtype: of the weights, "auto" as stored, "fast" what this machine computes fast in, or a name such as "float32".
        batch_size: prompts, or options of answers, that go through together.
        accelerate: INT4 layers run from their packed form; raises KernelError where there are none.
        """
        number = parse_dtype(dtype)  # an unknown name is refused before anything is read
        tokenizer = load_tokenizer(path)
        if adapter is None:
            model = load_accelerated(path, number) if accelerate else load_model(path, number)
        else:
            model = _adapted(path, adapter, rank, number, accelerate)
        return TransformersSession(on_fast_device(model.eval()), tokenizer, batch_size)


def _adapted(path: Path, adapter: Path, rank: Rank, dtype: torch.dtype | str, accelerate: bool) -> Any:
    saved = SavedAdapter(adapter)
    grid = saved.grid_over(path)
    if accelerate:
        check_packable(path, grid)
    model, _ = saved.load(load_model(path, dtype), rank)
    return accelerate_tuned(model, saved.tuner, grid) if accelerate else model


class TransformersSession:
    """A model and its tokenizer; prompts are batched, padded on the left. context: the longest text in tokens, None
    where the model has no limit of its own (ALiBi)."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = BATCH):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.device = next(model.parameters()).device
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def tokenize(self, text: str) -> list[int]:
        return list(self.tokenizer(text).input_ids)

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], max_new_tokens: int, stop: Sequence[str] = ()) -> Iterator[str]:
        """The greedy completion of each prompt in order; it ends before the first of the `stop` texts."""
        for start in range(0, len(prompts), self.batch_size):
            part = list(prompts[start : start + self.batch_size])
            batch = self.tokenizer(part, return_tensors="pt", padding=True, padding_side="left").to(self.device)
            width = batch["input_ids"].shape[1]
            criteria = StoppingCriteriaList([_Stops(self.tokenizer, width, stop)] if stop else [])

            tokens = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=criteria,
            )

            for text in self.tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True):
                yield cut(text, stop)

    @torch.no_grad()
    def logprobs(self, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor([list(tokens)], device=self.device)
        found, last = [torch.zeros(0)], len(tokens) - 1
        cache: dict[str, Any] = {}
        for start in range(0, last, CHUNK):
            part = ids[:, start : min(start + CHUNK, last)]
            result = self.model(input_ids=part, use_cache=last > CHUNK, **cache)
            if last > CHUNK:
                cache = continued(self.model, result)
            following = ids[0, start + 1 : start + 1 + part.shape[1]]
            found.append(token_scores(result.logits[0], following)[0])
        return torch.cat(found)

    def score(self, questions: Sequence[Question]) -> list[list[Score]]:
        """The scores of the options of questions whose prompts have one length; each prompt is computed once."""
        return score_options(self.model, questions)

    def close(self) -> None:
        self.model = None


class _Stops(StoppingCriteria):
    """A row is done when its text behind the prompt holds one of the stop texts."""

    def __init__(self, tokenizer: Any, start: int, stop: Sequence[str]):
        self.tokenizer, self.start, self.stop = tokenizer, start, stop

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :], skip_special_tokens=True)
        done = [any(end in text for end in self.stop) for text in texts]
        return torch.tensor(done, device=input_ids.device)  # type: ignore[return-value]


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stops."""
    return text[: min((at for end in stop if (at := text.find(end)) >= 0), default=len(text))]
