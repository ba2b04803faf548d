"""torch.compile gives what eager mode gives, at every rank, without compiling again for every draw of ranks."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers_peft import fill_adapter
from helpers_training import make_config
from peft import get_peft_model
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from peft_ext import SQFTConfig
from peft_ext.functional import masked_linear
from sqft_plugins.grid import make_grid
from sqft_plugins.layer_grid import LayerGrid


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def tuned(sparse_llama, **changes):
    model = sparse_llama(num_hidden_layers=1)
    return fill_adapter(get_peft_model(model, make_config(**changes)))


def step(call, model, tokens) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one training step whose ranks are drawn from the global seed."""
    model.zero_grad()
    loss = call(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def breaks() -> list[str]:
    return list(counters["graph_break"])


def test_evaluation_is_one_graph_for_each_rank(sparse_llama, tokens) -> None:
    model = tuned(sparse_llama).eval()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for rank in (8, 4, 8, 4):
            model.set_active_rank(rank)
            assert torch.equal(compiled(tokens).logits, model(tokens).logits)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
        assert torch.equal(compiled(tokens).logits, model(tokens).logits)
    assert backend.frame_count == 2


def test_a_training_step_is_one_graph_for_every_draw(sparse_llama, tokens) -> None:
    model = tuned(sparse_llama).train()
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=backend)
    losses = set()
    for seed in range(12):
        torch.manual_seed(seed)
        loss, gradients = step(model, model, tokens)
        torch.manual_seed(seed)
        ours, found = step(compiled, model, tokens)
        assert ours == pytest.approx(loss, rel=1e-6)  # A's rows above the rank are zeros here, not left out
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)
        losses.add(loss)
    assert len(losses) > 6  # the draws did differ
    assert backend.frame_count == 1
    (only,) = breaks()
    assert "the ranks of a training step are drawn outside the graph" in only


def test_a_training_step_of_a_fixed_rank_has_no_graph_break(sparse_llama, tokens) -> None:
    model = tuned(sparse_llama, rank_choices=None).train()
    loss, gradients = step(model, model, tokens)
    ours, found = step(torch.compile(model, backend="aot_eager", fullgraph=True), model, tokens)
    assert ours == pytest.approx(loss, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_merged_model_compiles_to_the_unmerged_one(sparse_llama, tokens) -> None:
    model = tuned(sparse_llama).eval()
    with torch.no_grad():
        unmerged = model(tokens).logits
        merged = torch.compile(model.merge_and_unload(), backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(merged(tokens).logits, unmerged, rtol=1e-6, atol=1e-6)


def test_compiled_blocks_equal_eager_ones(sparse_llama, tokens) -> None:
    """What `accelerate` calls regional compilation."""
    eager, regional = tuned(sparse_llama).train(), tuned(sparse_llama).train()
    for block in regional.base_model.model.model.layers:
        block.compile(backend="aot_eager", fullgraph=True)
    for seed in range(4):
        torch.manual_seed(seed)
        loss, gradients = step(eager, eager, tokens)
        torch.manual_seed(seed)
        ours, found = step(regional, regional, tokens)
        assert ours == pytest.approx(loss, rel=1e-6)
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_a_linear_on_its_grid_compiles_to_the_same_gradients() -> None:
    weight, A, B, x = (torch.randn(shape) for shape in ((48, 64), (4, 64), (48, 4), (3, 64)))
    mask = torch.rand(48, 64) < 0.5
    grid = LayerGrid(make_grid(weight), mask, on_grid=True)
    results = []
    for call in (masked_linear, torch.compile(masked_linear, backend="aot_eager", fullgraph=True)):
        inputs = [part.clone().requires_grad_() for part in (x, A, B)]
        y = call(inputs[0], weight, *inputs[1:], 2.0, True, grid)
        results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours)


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on CPUs")
def test_inductor_gives_the_gradients_of_eager_mode() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 24)).double()
    for parameter in base.parameters():
        parameter.data[torch.rand(parameter.shape) < 0.5] = 0
    config = SQFTConfig(r=4, lora_alpha=8, target_modules=["0", "2"])
    model = fill_adapter(get_peft_model(base, config, autocast_adapter_dtype=False).double(), 0.5).train()
    x = torch.randn(5, 48, dtype=torch.float64)
    results = []
    for call in (model, torch.compile(model, backend="inductor")):
        model.zero_grad()
        y = call(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == 5
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12)
