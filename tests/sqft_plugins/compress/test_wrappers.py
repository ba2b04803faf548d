"""A language model that sees images: its language model is pruned, everything else stays bit for bit."""

from __future__ import annotations

import pytest
import torch
from helpers_wrappers import WRAPPERS, wrapper
from transformers import AutoModelForImageTextToText

from sqft_plugins.compress.prune import prune_folder
from sqft_plugins.structure import find_linears


@pytest.mark.parametrize("family", sorted(WRAPPERS.keys() - {"llama4"}))
def test_the_language_model_alone_is_pruned(family, tmp_path, tiny_tokenizer) -> None:
    model = wrapper(family)
    model.save_pretrained(tmp_path / "m")
    tiny_tokenizer("byte-level").save_pretrained(tmp_path / "m")
    report = prune_folder(tmp_path / "m", tmp_path / "out", sequences=2, length=32)
    assert report["coverage"]["beside"]

    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    pruned = {f"{name}.weight" for name in find_linears(model)}
    assert {row["name"] + ".weight" for row in report["layers"]} == pruned
    after = dict(stock.named_parameters())
    for name, before in model.named_parameters():
        if name in pruned:
            assert int((after[name] == 0).sum()) >= before.numel() // 2
        else:
            assert torch.equal(after[name], before), name
