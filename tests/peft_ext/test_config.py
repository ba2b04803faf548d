"""What contradicts itself in a configuration is refused where it is made; test_fields.py has the kinds and ranges."""

from __future__ import annotations

import pytest
from helpers_peft import config

from sqft_plugins.errors import SQFTError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank_choices": [8, 4], "r": 16}, r"rank_choices=\[8, 4\] has the maximum 8 but r=16: make them equal"),
        ({"rank_choices": []}, r"rank_choices=\[\] is not a search space"),
        ({"rank_choices": [8, 4], "rank_pattern": {"q_proj": 4}}, "rank_pattern cannot be used with rank_choices"),
        ({"share_rank": "block"}, "share_rank='block' is unknown"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' changes the base weight"),
        ({"init_lora_weights": "olora"}, "init_lora_weights='olora' changes the base weight"),
        (
            {"init_lora_weights": "eva", "rank_choices": [8, 4]},
            "init_lora_weights='eva' cannot be used with rank_choic",
        ),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters=.* is not supported"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes, message) -> None:
    with pytest.raises(SQFTError, match=message):
        config(**changes)


def test_an_unknown_field_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'rank_choice': did you mean 'rank_choices'"):
        config(rank_choice=[8])
