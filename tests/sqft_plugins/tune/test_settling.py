"""The text on which an adapter settles."""

from __future__ import annotations

from itertools import chain

from sqft_plugins.tune.settling import LENGTH, SEQUENCES, settling_text


def rows(count: int, length: int) -> list[dict[str, list[int]]]:
    return [{"input_ids": [number] * length, "labels": []} for number in range(count)]


def test_rows_come_once_one_after_the_other_without_padding() -> None:
    given = rows(40, 7)
    text = settling_text([*given[:30], *given])  # a second epoch begins in the middle
    assert text.shape == (280 // LENGTH, LENGTH)
    assert text.flatten().tolist() == list(chain.from_iterable(row["input_ids"] for row in given))[: text.numel()]


def test_a_long_run_gives_no_more_than_goes_through_at_once() -> None:
    assert settling_text(rows(900, 7)).shape == (SEQUENCES, LENGTH)
    assert settling_text(rows(900, 7), context=64).shape == (SEQUENCES, 64)


def test_a_short_run_gives_one_short_piece() -> None:
    assert settling_text(rows(3, 7)).shape == (1, 21)
