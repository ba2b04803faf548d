"""The rank in force in the situations of the table in peft_ext/ranks.py; test_drawing.py has the hooks that call it."""

from __future__ import annotations

import pytest
import torch

from peft_ext.ranks import Ranks

A, B = torch.arange(16.0).view(8, 2), torch.arange(24.0).view(3, 8)


@pytest.fixture
def ranks() -> Ranks:
    return Ranks([8, 6, 4], 6, "layer")


def test_a_training_step_has_the_drawn_rank_and_evaluation_mode_the_chosen_one(ranks) -> None:
    assert ranks.in_force(training=True) == 6
    ranks.draw(4, A)
    assert (ranks.in_force(training=True), ranks.in_force(training=False)) == (4, 6)


def test_an_evaluation_puts_the_drawn_rank_aside_and_takes_it_up_again(ranks) -> None:
    ranks.draw(4, A)
    ranks.put_aside()
    assert (ranks.in_force(training=True), ranks.drawn, ranks.rows) == (6, None, None)
    ranks.take_up()
    assert ranks.in_force(training=True) == 4
    assert ranks.rows.flatten().tolist() == [True] * 4 + [False] * 4


def test_a_forgotten_draw_does_not_come_back(ranks) -> None:
    ranks.draw(4, A)
    ranks.put_aside(forget=True)
    ranks.take_up()
    assert (ranks.in_force(training=True), ranks.drawn) == (6, None)


def test_the_sub_adapter_is_that_of_the_rank_in_force(ranks) -> None:
    ranks.draw(4, A)
    for training, rank in ((True, 4), (False, 6)):
        a, b = ranks.sliced(A, B, training)
        assert torch.equal(a, A[:rank])
        assert torch.equal(b, B[:, :rank])


def test_compiled_code_masks_the_rows_of_a_to_the_same_product(ranks, monkeypatch) -> None:
    ranks.draw(4, A)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    a, b = ranks.sliced(A, B, training=True)
    assert a.shape == A.shape
    assert torch.equal(b @ a, B[:, :4] @ A[:4])


def test_a_fixed_rank_is_the_whole(ranks) -> None:
    ranks.fix(5)
    assert (ranks.choices, ranks.chosen) == ([5], 5)
    assert ranks.sliced(A, B, training=True) == (A, B)
