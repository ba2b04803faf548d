"""A combination of adapters is saved with the ranks that it has, whatever rank_pattern its parts had."""

import pytest
import torch
from helpers_peft import fill_adapter
from peft import PeftModel, get_peft_model
from torch import nn

from peft_ext import SQFTConfig
from sqft_plugins.errors import SQFTError

FACTOR_WISE = ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
ANY_RANKS = ["cat", "svd"]
X = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))


def net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    for layer in (model[0], model[2]):
        layer.weight.data[:, ::2] = 0
    return model


def two(first: dict, second: dict, **settings) -> PeftModel:
    common = {"r": 4, "lora_alpha": 6, "target_modules": ["0", "2"], **settings}
    model = get_peft_model(net(), SQFTConfig(rank_pattern=first, **common))
    model.add_adapter("second", SQFTConfig(rank_pattern=second, **common))
    return fill_adapter(model, 0.3)


def combine(model: PeftModel, kind: str) -> PeftModel:
    density = {"density": 0.5} if kind in FACTOR_WISE[1:] else {}
    model.add_weighted_adapter(["default", "second"], [0.6, -0.3], "mix", combination_type=kind, **density)
    model.set_adapter("mix")
    return model.eval()


def reloaded(model: PeftModel, folder) -> torch.Tensor:
    model.save_pretrained(folder, selected_adapters=["mix"])
    return PeftModel.from_pretrained(net(), folder / "mix").eval()(X)


@pytest.mark.parametrize("kind", FACTOR_WISE + ANY_RANKS)
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"0": 3}}], ids=str)
@pytest.mark.parametrize("pattern", [{}, {"0": 2}, {"2": 8}], ids=str)
def test_a_combination_loads_as_what_it_was(tmp_path, kind, settings, pattern) -> None:
    model = combine(two(pattern, pattern, **settings), kind)
    expected = model(X)
    assert torch.equal(reloaded(model, tmp_path), expected)
    torch.testing.assert_close(model.merge_and_unload()(X), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ANY_RANKS)
@pytest.mark.parametrize("patterns", [({"0": 2}, {}), ({}, {"0": 2})], ids=str)
def test_other_ranks_of_one_layer_can_be_put_side_by_side(tmp_path, kind, patterns) -> None:
    model = combine(two(*patterns), kind)
    assert torch.equal(reloaded(model, tmp_path), model(X))


@pytest.mark.parametrize("kind", FACTOR_WISE)
@pytest.mark.parametrize("patterns", [({"0": 2}, {}), ({}, {"0": 2})], ids=str)
def test_factors_of_other_ranks_are_not_added(kind, patterns) -> None:
    with pytest.raises(SQFTError, match=rf"combination_type='{kind}' .*have the ranks .* in 0: use 'cat' or 'svd'"):
        combine(two(*patterns), kind)
