"""The CPU LoRA path against vLLM's own and against a formula written here."""

from __future__ import annotations

import inspect
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from helpers_patching import restore

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from vllm_ext.adapters import lora_cpu
from vllm_ext.adapters.low_rank import group_tokens

SLOTS, MAX_RANK, IN = 3, 16, 64
RANKS = [(16, 8, 4), (2, 0, 16), (1, 16, 16)]
"""True rank of each slot, of each slice."""


@contextmanager
def path(ours: bool):
    """Our path, or vLLM's own; afterwards the one that was there before."""
    before = lora_cpu.add_lora_linear.is_applied
    restore(*lora_cpu.REPLACEMENTS)
    assert not ours or lora_cpu.patch_lora_cpu()
    try:
        yield
    finally:
        restore(*lora_cpu.REPLACEMENTS)
        if before:
            lora_cpu.patch_lora_cpu()


@pytest.fixture
def ours():
    with path(ours=True):
        yield


@pytest.fixture
def stock():
    with path(ours=False):
        yield


def stacks(sizes, dtype=torch.float32, seed=0):
    """The stacks of one layer, padded as vLLM pads them."""
    generator = torch.Generator().manual_seed(seed)
    A, B = [], []
    for index, size in enumerate(sizes):
        a, b = torch.zeros(SLOTS, 1, MAX_RANK, IN), torch.zeros(SLOTS, 1, size, MAX_RANK)
        for slot, ranks in enumerate(RANKS):
            a[slot, 0, : ranks[index]] = torch.randn(ranks[index], IN, generator=generator)
            b[slot, 0, :, : ranks[index]] = torch.randn(size, ranks[index], generator=generator)
        A.append(a.to(dtype))
        B.append(b.to(dtype))
    return tuple(A), tuple(B)


def wrapper(tokens, prompts=None):
    """A wrapper whose step has these slots (-1: no adapter); slot s holds the adapter with the id s + 1."""
    made = PunicaWrapperCPU(64, 64, "cpu")
    mapping = LoRAMapping(
        tuple(s + 1 for s in tokens), tuple(s + 1 for s in (tokens if prompts is None else prompts)), is_prefill=True
    )
    made.update_metadata(mapping, [1, 2, 3], SLOTS + 1, 640)
    return made


def formula(y, x, A, B, tokens, sizes):
    """y[t] += B_s A_s x[t], slice by slice, token by token, in float64."""
    result, begin = y.double().clone(), 0
    for a, b, size in zip(A, B, sizes, strict=True):
        for t, slot in enumerate(tokens):
            if slot >= 0:
                result[t, begin : begin + size] += b[slot, 0].double() @ (a[slot, 0].double() @ x[t].double())
        begin += size
    return result


STEPS = {
    "one adapter": [1] * 7,
    "no adapter": [-1] * 5,
    "base first": [-1, 0],
    "base in between": [0, -1, 2, 2, -1, 1, 0, -1],
    "runs": [2, 2, 2, 0, 0, 1],
    "one token": [2],
    "apart": [0, 1, 2, 0, 1, 2],
}
SIZES = {"one slice": (96,), "three slices": (96, 32, 32)}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("tokens", STEPS.values(), ids=STEPS)
def test_a_linear_layer_is_the_formula(ours, tokens, sizes):
    A, B = stacks(sizes)
    x, y = torch.randn(len(tokens), IN), torch.randn(len(tokens), sum(sizes))
    expected = formula(y, x, A, B, tokens, sizes)
    wrapper(tokens).add_lora_linear(y, x, A, B, 1.0, sizes)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-3)  # sums of 64 and 16 products near 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in STEPS if -1 not in STEPS[name]])
def test_where_every_token_has_an_adapter_the_result_is_vllms_own(name, dtype):
    tokens, sizes = STEPS[name], SIZES["three slices"]
    A, B = stacks(sizes, dtype)
    x = torch.randn(len(tokens), IN, dtype=dtype)
    theirs, mine = torch.zeros(len(tokens), sum(sizes), dtype=dtype), torch.zeros(len(tokens), sum(sizes), dtype=dtype)
    for out, patched in ((theirs, False), (mine, True)):
        with path(patched):
            wrapper(tokens).add_lora_linear(out, x, A, B, 1.0, sizes)
    # in bfloat16 vLLM rounds A x to 8 bits, we do not: each of 16 products is off by half a unit of 2^-8 at most
    tolerance = {"rtol": 1e-5, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1.0}
    torch.testing.assert_close(mine, theirs, **tolerance)
    if dtype == torch.bfloat16:
        exact = formula(torch.zeros_like(mine), x, A, B, tokens, sizes)
        assert (mine.double() - exact).abs().mean() <= (theirs.double() - exact).abs().mean()


def test_a_token_without_adapter_gets_none_here_and_the_last_slots_in_vllm():
    """The bug this cures (vLLM 0.32): the index -1 picks the last slot."""
    tokens, sizes = [-1, 0], (96,)
    A, B = stacks(sizes)
    x, theirs, mine = torch.randn(2, IN), torch.zeros(2, 96), torch.zeros(2, 96)
    for out, patched in ((theirs, False), (mine, True)):
        with path(patched):
            wrapper(tokens).add_lora_linear(out, x, A, B, 1.0, sizes)
    assert theirs[0].any(), "vLLM no longer has the bug: drop this test and what the documentation says of it"
    assert not mine[0].any()
    torch.testing.assert_close(mine[1], theirs[1], rtol=1e-5, atol=1e-3)


def test_logits_go_by_the_sampled_positions(ours):
    tokens, prompts = [0, 0, -1, 2], [0, -1, 2]
    A, B = stacks((640,))
    x, y = torch.randn(3, IN), torch.randn(3, 704)  # the head is padded to 704
    expected = torch.cat([formula(y[:, :640], x, A, B, prompts, (640,)), y[:, 640:].double()], 1)
    wrapper(tokens, prompts).add_lora_logits(y, x, A[0], B[0], 1.0)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-3)


def test_an_embedding_adds_to_tokens_with_an_adapter_only(ours):
    tokens = [-1, 1, 0, -1]
    _, B = stacks((96,))
    x, y = torch.randn(4, MAX_RANK), torch.randn(4, 96)
    expected = torch.stack([y[t] + (x[t] @ B[0][s, 0].t() if s >= 0 else 0) for t, s in enumerate(tokens)])
    wrapper(tokens).add_lora_embedding(y, x, B[0])
    torch.testing.assert_close(y, expected)


def test_shrink_and_expand_alone_are_the_layer_of_fully_sharded_adapters(ours):
    tokens, sizes = STEPS["base in between"], (96, 32, 32)
    A, B = stacks(sizes)
    x, y = torch.randn(len(tokens), IN), torch.randn(len(tokens), sum(sizes))
    expected = formula(y, x, A, B, tokens, sizes)
    step = wrapper(tokens)
    buffers = torch.zeros(3, len(tokens), MAX_RANK)
    step.add_shrink(buffers, x, A, 1.0)
    step.add_expand(y, buffers, B, sizes, add_input=True)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("method", ["add_expand", "add_lora_embedding"])
def test_what_is_to_be_replaced_and_not_added_to_is_left_to_vllm(ours, monkeypatch, method):
    A, B = stacks((96,))
    inputs, stacked, more = ([A], B, [(96,)]) if method == "add_expand" else (A, B[0], [])
    monkeypatch.setattr(getattr(lora_cpu, method), "_original", lambda *_, **__: "vLLM's own")
    assert getattr(wrapper([1]), method)(torch.zeros(1, 96), inputs, stacked, *more, add_inputs=False) == "vLLM's own"


def test_another_adapter_in_a_slot_is_seen(ours, monkeypatch):
    A, B = stacks((96,))
    step, x = wrapper([1, 1]), torch.randn(2, IN)
    step.add_lora_linear(torch.zeros(2, 96), x, A, B, 1.0, (96,))
    A[0][1].normal_()
    B[0][1].normal_()

    # what `activate_adapter` looks at; a whole manager needs a model
    manager = SimpleNamespace(punica_wrapper_mapping={"language_model": step}, lora_index_to_id=[1, 7, 3])
    monkeypatch.setattr(lora_cpu.activate_adapter, "_original", lambda self, lora_id: True)
    lora_cpu.activate_adapter.function(manager, 7)
    y = torch.zeros(2, 96)
    step.add_lora_linear(y, x, A, B, 1.0, (96,))
    torch.testing.assert_close(y.double(), formula(torch.zeros(2, 96), x, A, B, [1, 1], (96,)), rtol=1e-5, atol=1e-3)


def test_the_true_rank_is_found_and_zero_layers_are_left_out():
    A, B = stacks((96, 32, 32))
    slot = lora_cpu.true_slot([a[1] for a in A], [b[1] for b in B], (96, 32, 32))
    assert slot.A.shape == (IN, 18)
    assert [(part[2].shape, part[1]) for part in slot.slices] == [((2, 96), slice(0, 96)), ((16, 32), slice(128, 160))]
    assert lora_cpu.true_slot([torch.zeros(1, 16, 64)], [torch.zeros(1, 96, 16)], (96,)) is None


def test_groups_hold_each_token_with_an_adapter_once():
    for name, tokens in STEPS.items():
        slots = torch.tensor(tokens)
        seen = torch.full_like(slots, -1)
        batch = group_tokens(slots)
        for group in batch.groups:
            rows = batch.rows(group)
            assert (seen[rows] == -1).all()
            seen[rows] = group.slot
        assert torch.equal(seen, slots)
        assert (batch.order is None) == (name not in ("base in between", "apart"))
    assert group_tokens(torch.tensor([], dtype=torch.long)).groups == []


def test_it_steps_aside_whole_when_a_signature_has_changed(stock, monkeypatch, caplog):
    def add_lora_logits(self, y, x, weights):
        pass

    monkeypatch.setattr(PunicaWrapperCPU, "add_lora_logits", add_lora_logits)

    def methods():
        return [inspect.getattr_static(one.owner, one.name) for one in lora_cpu.REPLACEMENTS]

    before = methods()
    logger = logging.getLogger("vllm.sqft")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger=logger.name):
        assert not lora_cpu.patch_lora_cpu()
    assert methods() == before
    assert [record for record in caplog.records if "is not replaced" in record.getMessage()]


def test_the_switch_leaves_vllms_own_path(stock, monkeypatch):
    monkeypatch.setenv("SQFT_LORA_CPU", "0")
    assert not lora_cpu.patch_lora_cpu()
