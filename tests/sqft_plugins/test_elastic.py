from __future__ import annotations

import random

import pytest
import torch

from sqft_plugins import elastic
from sqft_plugins.adapter.lora_config import sub_adapter_alpha
from sqft_plugins.errors import SQFTError

CHOICES = [32, 28, 24, 20, 16]
MODULES = [f"model.layers.{block}.{kind}" for block in range(3) for kind in ("self_attn.q_proj", "mlp.up_proj")]


def test_search_space_is_sorted_and_checked():
    assert elastic.check_rank_choices([16, 32, 24, 16], 32) == [32, 24, 16]
    for choices in ([], [0, 8], [-1]):
        with pytest.raises(SQFTError, match="is not a search space"):
            elastic.check_rank_choices(choices, 8)
    with pytest.raises(SQFTError, match="maximum 16 but r=32"):
        elastic.check_rank_choices([16, 8], 32)


@pytest.mark.parametrize(("choices", "median"), [(CHOICES, 24), ([32, 24, 16], 24), ([16, 12, 8, 4], 8), ([8], 8)])
def test_heuristic_is_the_lower_median(choices, median):
    assert elastic.heuristic_rank(choices) == median


@pytest.mark.parametrize(
    ("name", "rank"),
    [("max", 32), ("min", 16), ("median", 24), ("heuristic", 24), ("r20", 20), ("@r28", 28), ("16", 16), (24, 24)],
)
def test_names_of_ranks(name, rank):
    assert elastic.parse_rank(name, CHOICES) == rank


@pytest.mark.parametrize("name", ["big", "r", "", "1.5", "r17", 17, 0, "-16"])
def test_unknown_ranks_are_refused(name):
    with pytest.raises(SQFTError, match=r"is not a rank|outside the search space"):
        elastic.parse_rank(name, CHOICES)


def test_configuration_of_one_rank_and_of_patterns():
    assert elastic.configuration("min", MODULES, CHOICES) == dict.fromkeys(MODULES, 16)
    chosen = elastic.configuration({".*": "max", "mlp.up_proj": 20, MODULES[0]: "r16"}, MODULES, CHOICES)
    assert list(chosen) == MODULES
    assert chosen[MODULES[0]] == 16
    assert chosen[MODULES[1]] == 20
    assert chosen[MODULES[2]] == 32


def test_configuration_names_what_does_not_match():
    with pytest.raises(SQFTError, match="key 'up_prj' matches no adapted module"):
        elastic.configuration({"up_prj": 16}, MODULES, CHOICES)
    with pytest.raises(SQFTError, match=r"no rank for .*q_proj.* \(and 2 more\)"):
        elastic.configuration({"up_proj": 16, ".*up_proj": 16}, MODULES, CHOICES)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_slice_with_its_alpha_equals_the_super_adapter_with_the_rest_zeroed(rank):
    torch.manual_seed(0)
    A, B, alpha = torch.randn(8, 16, dtype=torch.float64), torch.randn(12, 8, dtype=torch.float64), 16.0
    small_A, small_B = elastic.slice_lora(A, B, rank)
    assert small_A.shape == (rank, 16)
    assert small_B.shape == (12, rank)
    assert small_A.data_ptr() == A.data_ptr()  # a view
    rest = torch.zeros(8, dtype=torch.float64)
    rest[:rank] = 1
    expected = alpha / 8 * (B * rest) @ A
    plain = sub_adapter_alpha(alpha, rank, 8) / rank * small_B @ small_A
    torch.testing.assert_close(plain, expected, rtol=1e-14, atol=0)


def test_modules_of_a_block_share_a_rank():
    drawn = elastic.sample_configuration(MODULES, CHOICES, "layer", random.Random(3))
    assert all(drawn[MODULES[2 * block]] == drawn[MODULES[2 * block + 1]] for block in range(3))
    assert set(drawn.values()) <= set(CHOICES)
    assert drawn == elastic.sample_configuration(MODULES, CHOICES, "layer", random.Random(3))
    assert elastic.share_key("lm_head", "layer") == "lm_head"


def test_sampling_is_uniform_over_the_search_space():
    source = random.Random(0)
    drawn = [elastic.sample_configuration(MODULES[:1], CHOICES, "module", source)[MODULES[0]] for _ in range(5000)]
    assert all(abs(drawn.count(choice) - 1000) < 150 for choice in CHOICES)


def test_each_module_alone():
    drawn = [elastic.sample_configuration(MODULES, CHOICES, "module", random.Random(s)) for s in range(20)]
    assert any(d[MODULES[0]] != d[MODULES[1]] for d in drawn)
