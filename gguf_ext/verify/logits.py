"""`sqft verify --logits`: the model in transformers and the file in llama.cpp on the same text, token by token.

Equal weights are not equal logits: llama.cpp rounds activations to 8 bits before it multiplies them with Q4_0 or Q5_0
(mean KL about 6e-3 seen), and gelu goes through a table in fp16. An F32 file agrees to about 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gguf_ext.errors import GGUFError
from gguf_ext.run.session import LlamaSession
from sqft_plugins.checkpoint import load_model, load_tokenizer
from sqft_plugins.evaluate.run import WINDOW
from sqft_plugins.progress import say, track


@dataclass(frozen=True)
class LogitsReport:
    """How far the file's logits are from the model's.

    tokens: judged positions.
    mean_kl, p99_kl: of the KL divergence of the file's next-token distribution from the model's, in nats: the mean and
        the 99th percentile over positions.
    largest: max |dlogit|.
    top1: the fraction of positions where both have the same likeliest token.
    perplexity_model, perplexity_file: of the text.
    same_tokens: whether llama.cpp cuts the text as transformers does.
    """

    tokens: int
    mean_kl: float
    p99_kl: float
    largest: float
    top1: float
    perplexity_model: float
    perplexity_file: float
    same_tokens: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare_logits(model: str | Path, file: str | Path, text: str, max_tokens: int = 1024) -> LogitsReport:
    """Runs a model folder (dequantized, float32) and a GGUF file (attention cache float32) on the first `max_tokens`
    tokens of `text`, in the windows of `sqft_plugins.evaluate.perplexity`. Raises GGUFError for a text that is too
    short and a file of another vocabulary, DependencyError, RuntimeFailedError, CheckpointError."""
    tokenizer = load_tokenizer(model)
    start, whole = list(tokenizer("").input_ids), list(tokenizer(text).input_ids)
    body = whole[len(start) :][:max_tokens]
    windows = [[*start, *body[at : at + WINDOW]] for at in range(0, len(body) - 1, WINDOW)]
    if not windows:
        raise GGUFError(f"the text has {len(body)} tokens: give a longer one with --text, or more --max-tokens")
    skipped = max(len(start) - 1, 0)  # tokens that the tokenizer puts before a text are not predicted

    # both on each window, some positions at a time
    divergences, losses, largest, agree = [], [], 0.0, 0
    with LlamaSession(file, context=WINDOW + skipped, kv_type="f32", flash_attention=False) as session:
        same = session.tokenize(text) == whole
        say(f"loading {model}")
        reference = load_model(model, dtype=torch.float32)
        head = reference.get_output_embeddings()
        if session.vocabulary_size != head.weight.shape[0]:
            raise GGUFError(f"{file} has {session.vocabulary_size} tokens, not as many as {model}: it is another model")
        for window in track(windows, "comparing the logits"):
            loss = []
            for ours, theirs, following in _pairs(reference, session, window):
                largest = max(largest, float((ours - theirs).abs().max()))
                agree += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
                p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
                divergences.append((p.exp() * (p - q)).sum(-1))
                loss.append(torch.stack([-p, -q]).gather(2, following.expand(2, -1)[:, :, None])[:, :, 0])
            losses.append(torch.cat(loss, dim=1)[:, skipped:])  # [2, tokens]

    kl, nll = torch.cat(divergences), torch.cat(losses, dim=1).mean(dim=1)
    return LogitsReport(
        tokens=len(kl),
        mean_kl=float(kl.mean()),
        p99_kl=float(kl.quantile(0.99)),
        largest=largest,
        top1=agree / len(kl),
        perplexity_model=math.exp(float(nll[0])),
        perplexity_file=math.exp(float(nll[1])),
        same_tokens=same,
    )


@torch.no_grad()
def _pairs(reference: Any, session: LlamaSession, window: list[int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Some positions at a time: the logits of both [tokens, vocabulary], and the tokens that follow [tokens]."""
    logits = reference(torch.tensor([window[:-1]]), use_cache=False).logits[0]
    following, at = torch.tensor(window[1:]), 0
    for theirs in session.logits(window[:-1]):
        rows = slice(at, at + len(theirs))
        yield logits[rows], theirs, following[rows]
        at += len(theirs)
