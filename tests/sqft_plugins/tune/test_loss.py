"""The loss at answer tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sqft_plugins.tune.data import IGNORED, Collator
from sqft_plugins.tune.loss import answer_logits, answer_loss


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_loss_at_answer_tokens_is_the_loss_over_all_logits(tiny_model, family) -> None:
    model = tiny_model(family).float()
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [IGNORED, 6, 7, 8]}, {"input_ids": [9, 10], "labels": [IGNORED, 10]}]
    batch = Collator(pad=0)(rows)
    labels = batch.pop("labels")
    logits, targets = answer_logits(model, model.get_output_embeddings(), batch, labels)
    full = model(**batch).logits
    naive = F.cross_entropy(full[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
    assert logits.shape[0] == 4
    torch.testing.assert_close(answer_loss(logits, targets), naive, rtol=1e-5, atol=1e-6)
    assert not model.get_output_embeddings()._forward_pre_hooks
