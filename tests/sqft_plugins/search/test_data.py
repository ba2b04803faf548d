"""The three parts of the questions."""

from __future__ import annotations

import random

import pytest

from sqft_plugins.errors import SQFTError
from sqft_plugins.plugins.protocols import Item
from sqft_plugins.search.data import split_items

ITEMS = [Item(f"What is {n}?", str(n)) for n in range(40)]


def test_the_three_parts_share_no_prompt_and_do_not_depend_on_the_order() -> None:
    twice = [*ITEMS, *(Item(item.prompt, "again") for item in ITEMS[::3])]
    split = split_items(twice, subset=10, fresh=20)
    prompts = [{item.prompt for item in part} for part in split.values()]
    assert [len(part) for part in prompts] == [10, 10, 10]
    assert len(set.union(*prompts)) == 30
    shuffled = random.Random(1).sample(twice, len(twice))
    again = split_items(shuffled, subset=10, fresh=20)
    assert {i.prompt for i in again["search"]} == prompts[0]
    assert {i.prompt for i in split_items(twice, subset=10, fresh=20, seed=1)["search"]} != prompts[0]


def test_half_of_few_questions_is_left_for_the_score() -> None:
    split = split_items(ITEMS)
    assert [len(part) for part in split.values()] == [20, 10, 10]


@pytest.mark.parametrize("items", [[], ITEMS[:3], ITEMS[:1] * 50])
def test_too_little_data_is_refused(items) -> None:
    with pytest.raises(SQFTError, match=r"different prompts leave .* each needs 2: give more data"):
        split_items(items)
    with pytest.raises(SQFTError, match="or a smaller --subset"):
        split_items(ITEMS, subset=38)
