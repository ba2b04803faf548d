"""Several examples in one row do not see each other."""

from __future__ import annotations

import pytest
import torch

from sqft_plugins.errors import SQFTError
from sqft_plugins.tune.data import IGNORED, Collator
from sqft_plugins.tune.loss import answer_logits, answer_loss
from sqft_plugins.tune.packing import PackingCollator, check_packing, fill_rows

LENGTHS = (3, 1, 9, 5, 12, 2, 40, 7)
PACKED = ("llama", "mistral", "phi3", "qwen2", "qwen3", "gemma3", "gpt2")
"""Families that see where an example ends; OPT and Bloom do not."""


def some_rows() -> list[dict[str, list[int]]]:
    """Examples of random tokens; every token of the third and the fourth one is learned, also their first."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, length in enumerate(LENGTHS):
        tokens = torch.randint(4, 600, (length,), generator=generator).tolist()
        prompt = 0 if number in (2, 3) else length // 2
        rows.append({"input_ids": tokens, "labels": [IGNORED] * prompt + tokens[prompt:]})
    return rows


def test_rows_are_filled_and_never_overfull() -> None:
    rows = fill_rows(LENGTHS, 40)
    assert sorted(index for row in rows for index in row) == list(range(len(LENGTHS)))
    assert [sum(LENGTHS[index] for index in row) for row in rows] == [40, 39]
    assert PackingCollator(0)(some_rows())["input_ids"].shape == (2, 40)


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, torch.Tensor]:
    labels = batch.pop("labels")
    model.zero_grad()
    loss = answer_loss(*answer_logits(model, model.get_output_embeddings(), batch, labels))
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", PACKED)
def test_packed_rows_have_the_loss_and_the_gradients_of_the_same_examples_unpacked(tiny_model, family) -> None:
    model = tiny_model(family).float()
    check_packing(model)
    loss, gradients = loss_and_gradients(model, Collator(0)(some_rows()))
    packed_loss, packed_gradients = loss_and_gradients(model, PackingCollator(0)(some_rows()))
    torch.testing.assert_close(packed_loss, loss, rtol=1e-6, atol=0)
    # the order of sums; 0.02 (Bloom) and 0.36 (OPT) where the examples see each other
    assert (packed_gradients - gradients).norm() < 1e-5 * gradients.norm()


@pytest.mark.parametrize("family", ["opt", "bloom"])
def test_a_family_whose_examples_would_see_each_other_is_refused(tiny_model, family) -> None:
    with pytest.raises(SQFTError, match=f"packing: in a model of type {family} the examples of one row would see"):
        check_packing(tiny_model(family))
