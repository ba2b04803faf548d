"""The cache of a real model is found, and asking for it warns of nothing."""

from __future__ import annotations

import logging

import pytest
import torch
from transformers.utils import logging as upstream

from sqft_plugins.key_values import cache_in


@pytest.mark.parametrize("kept", [True, False])
def test_the_cache_of_an_output_goes_into_the_next_call(tiny_model, caplog, kept) -> None:
    model, tokens = tiny_model("llama"), torch.arange(4, 24)[None]
    upstream.enable_propagation()
    logging.Logger.warning_once.cache_clear()  # transformers': each text once a process

    with torch.no_grad(), caplog.at_level(logging.WARNING):
        whole = model(input_ids=tokens, use_cache=False).logits[:, 12:]
        cache = cache_in(model(input_ids=tokens[:, :12], use_cache=kept))
        rest = model(input_ids=tokens[:, 12:], **cache).logits
    upstream.disable_propagation()

    assert "deprecated" not in caplog.text
    assert len(cache) == kept
    assert torch.allclose(rest, whole, atol=1e-5) == kept  # float32, other orders of summation
