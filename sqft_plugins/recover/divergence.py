"""How far a model's predictions are from another's: the Kullback-Leibler divergence of the next token.

Gemma's vocabulary has 262,144 entries, of which a text uses a tenth. Both models' heads are cut to the tokens that the
text uses and as many drawn ones as keep the rest from being forgotten; whatever a model does after its head
(soft-capping, scaling) still happens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DRAWN = 4096
"""Tokens of the vocabulary beside those of the text."""


def vocabulary_of(tokens: Tensor, size: int, seed: int) -> Tensor:
    """int64, ascending: the tokens of a text [sequences, length], and `DRAWN` of all `size`."""
    drawn = torch.randint(size, (DRAWN,), generator=torch.Generator().manual_seed(seed))
    return torch.cat([tokens.flatten(), drawn]).unique()


@torch.no_grad()
def cut_head(model: Any, vocabulary: Tensor) -> None:
    """From here on the model's logits are those of `vocabulary` alone. Its embedding stays whole."""
    head = model.get_output_embeddings()
    for name in ("weight", "bias"):
        if (parameter := getattr(head, name, None)) is not None:
            rows = parameter[vocabulary.to(parameter.device)]
            setattr(head, name, nn.Parameter(rows, requires_grad=False))


def divergence(model: Any, dense: Any, tokens: Tensor) -> Tensor:
    """Mean over the tokens [sequences, length] of KL(dense ‖ model) in nats, in float32. The prediction at the first
    token of a sequence, before which there is nothing, does not count."""
    with torch.no_grad():
        wanted = dense(input_ids=tokens, use_cache=False).logits[:, 1:].float().log_softmax(-1)
    found = model(input_ids=tokens, use_cache=False).logits[:, 1:].float().log_softmax(-1)
    return F.kl_div(found, wanted, reduction="sum", log_target=True) / wanted[..., 0].numel()
