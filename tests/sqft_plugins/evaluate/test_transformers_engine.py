"""Evaluation and search run where the machine computes fast: on its GPU, if it has one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sqft_plugins.evaluate import open_session
from sqft_plugins.evaluate.transformers_engine import TransformersSession
from sqft_plugins.hardware import fast_device


class Far(nn.Module):
    """Its weight is on another device than the CPU; it remembers where its inputs are."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(1, device="meta"))
        self.seen = []

    def generate(self, input_ids, attention_mask, **kwargs):
        self.seen += [input_ids.device.type, attention_mask.device.type]
        raise StopIteration

    def forward(self, input_ids, **kwargs):
        self.seen.append(input_ids.device.type)
        raise StopIteration


def test_inputs_go_where_the_model_is(tiny_model, tiny_tokenizer):
    model = Far(tiny_model("llama").config)
    session = TransformersSession(model, tiny_tokenizer("byte-level"))
    with pytest.raises(RuntimeError):  # a StopIteration inside of a generator
        next(iter(session.generate(["a", "a text"], 2)))
    with pytest.raises(StopIteration):
        session.logprobs([1, 2, 3])
    assert model.seen == ["meta", "meta", "meta"]


def test_a_model_is_opened_on_the_fast_device(tiny_llama, monkeypatch):
    monkeypatch.setattr("sqft_plugins.hardware.fast_device", lambda: torch.device("meta"))
    assert {parameter.device.type for parameter in open_session(tiny_llama).model.parameters()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_scores_are_those_of_the_cpu(tiny_llama, monkeypatch):
    near = open_session(tiny_llama, dtype="float32")
    assert near.model.device.type == fast_device().type == "cuda"
    monkeypatch.setattr("sqft_plugins.hardware.fast_device", lambda: torch.device("cpu"))
    far = open_session(tiny_llama, dtype="float32")
    tokens = near.tokenize("The water in the river is cold, and a stone lies in it.")
    assert torch.allclose(near.logprobs(tokens), far.logprobs(tokens), atol=1e-3)  # TF32 is off by default
    assert list(near.generate(["The water"], 8)) == list(far.generate(["The water"], 8))
