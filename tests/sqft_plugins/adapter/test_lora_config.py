"""PEFT's rules about a LoraConfig: which modules, at which rank, with which scaling."""

from __future__ import annotations

import math

import pytest
import torch

from sqft_plugins.adapter.lora_config import rank_of, scaling_of, sub_adapter_alpha


def test_alpha_stays_a_whole_number_where_it_is_one():
    assert sub_adapter_alpha(64, 16, 32) == 32
    assert isinstance(sub_adapter_alpha(64, 16, 32), int)
    assert sub_adapter_alpha(16, 24, 32) == 12
    assert sub_adapter_alpha(10, 8, 32) == 2.5


@pytest.mark.parametrize("rslora", [False, True])
def test_a_sub_adapter_scales_as_its_super_adapter(rslora):
    whole = {"r": 32, "lora_alpha": 48, "use_rslora": rslora}
    for rank in (1, 7, 16, 32):
        part = {"r": rank, "lora_alpha": sub_adapter_alpha(48, rank, 32, rslora), "use_rslora": rslora}
        assert scaling_of(part, "q_proj") == pytest.approx(scaling_of(whole, "q_proj"), rel=1e-15)
    assert scaling_of(whole, "q_proj") == 48 / (math.sqrt(32) if rslora else 32)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 5}},
        {"rank_pattern": {r".*\.1\..*": 2, "q_proj": 4}, "use_rslora": True},
        {"alpha_pattern": {"model.layers.0.v_proj": 3.5, "v_proj": 7}},
    ],
    ids=range(5),
)
def test_rank_and_scaling_are_those_that_peft_computes(fields):
    peft = pytest.importorskip("peft")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.v_proj = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([Block(), Block()])})})
    config = peft.LoraConfig(r=8, lora_alpha=12, target_modules=["q_proj", "v_proj"], **fields)
    tuned = peft.inject_adapter_in_model(config, model)
    layers = {name: layer for name, layer in tuned.named_modules() if hasattr(layer, "scaling")}
    assert len(layers) == 4
    for name, layer in layers.items():
        assert rank_of(config.to_dict(), name) == layer.r["default"], name
        assert scaling_of(config.to_dict(), name) == layer.scaling["default"], name
