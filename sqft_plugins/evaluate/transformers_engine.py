"""Evaluation with transformers: model folders, float or INT4, with or without an adapter at a rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.elastic import Rank
from sqft_plugins.hardware import fast_dtype

_DTYPES: dict[str, Callable[[], Any]] = {"auto": lambda: "auto", "fast": fast_dtype}


class TransformersEngine:
    name = "transformers"

    def opens(self, path: Path) -> bool:
        return path.is_dir()

    def open(
        self, path: Path, adapter: Path | None = None, rank: Rank = "max", dtype: str = "fast", batch_size: int = 64
    ) -> TransformersSession:
        """adapter: a folder of any installed tuner, at `rank`. dtype: of the weights, "auto" as stored, "fast" what
        this machine computes fast in, or a name such as "float32"."""
        tokenizer = load_tokenizer(path)
        model: nn.Module = load_model(path, _DTYPES[dtype]() if dtype in _DTYPES else getattr(torch, dtype))
        if adapter is not None:
            from sqft_plugins.tune.adapters import check_adapter, choose_rank, tuner_of

            folder = check_adapter(adapter)
            tuner = tuner_of(folder)
            model = tuner.load(model, folder)  # type: ignore[arg-type]
            tuner.set_rank(model, choose_rank(rank, tuner, folder))
        return TransformersSession(model.eval(), tokenizer, batch_size)


class TransformersSession:
    """A model and its tokenizer; prompts are batched, padded on the left."""

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64):
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer(text).input_ids

    @torch.no_grad()
    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> Iterator[str]:
        for start in range(0, len(prompts), self.batch_size):
            part = list(prompts[start : start + self.batch_size])
            batch = self.tokenizer(part, return_tensors="pt", padding=True, padding_side="left")
            tokens = self.model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            new = tokens[:, batch["input_ids"].shape[1] :]
            yield from self.tokenizer.batch_decode(new, skip_special_tokens=True)

    @torch.no_grad()
    def logprobs(self, tokens: Sequence[int]) -> Tensor:
        ids = torch.tensor([list(tokens)])
        logits = self.model(input_ids=ids, use_cache=False).logits[0, :-1].float()  # [tokens - 1, vocabulary]
        return logits.log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)

    def close(self) -> None:
        self.model = None
