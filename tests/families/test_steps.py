"""Families through all steps: those that are used most, and those whose blocks hand each other more than their state.

A slow test takes every family of the installed transformers and compares it with docs/models.md.
"""

from __future__ import annotations

import pytest
import torch
from helpers_families import buildable, model_of, tokenizer
from helpers_steps import SMALL, STEPS, TOKENS, mark, outcome, promised, walk

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress import blocks, drive
from sqft_plugins.compress.prune import prune_folder, prune_model
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_blocks, find_linears


@pytest.mark.parametrize("family", ["llama", "olmo2", "mixtral", "deepseek_v3", "hy_v4"])
def test_a_family_goes_all_the_way(family, tmp_path) -> None:
    assert walk(family, tmp_path) == dict.fromkeys(STEPS, "ok")


@pytest.mark.slow
@pytest.mark.parametrize("family", promised())
def test_no_cell_of_the_page_got_worse(family, tmp_path) -> None:
    """A cell may get better: then remake the page."""
    if not buildable(family):
        pytest.skip("not in the installed transformers")
    found = walk(family, tmp_path)
    worse = {step: found[step] for step, was in promised()[family].items() if was == "ok" and mark(found[step]) != "ok"}
    assert not worse


def test_the_page_has_the_families_that_are_used_most() -> None:
    used = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "olmo2", "granite"]
    assert all(promised()[family] == dict.fromkeys(STEPS, "ok") for family in used)


@pytest.mark.parametrize("family", ["zaya", "hy_v4", "bamba", "openai-gpt", "xlstm"])
def test_what_a_block_returns_beside_its_state_is_that_of_each_micro_batch(family, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 32)
    model = model_of(family)
    tokens = torch.randint(4, 640, (3, 32), generator=torch.Generator().manual_seed(0))
    outputs: list[torch.Tensor] = []

    def on_block(index: int, run: blocks.BlockRun) -> None:
        run.advance()
        outputs[:] = run.states

    blocks.run_blocks(model, tokens, on_block)
    assert len(outputs) == 3
    seen: list[torch.Tensor] = []
    hook = find_blocks(model)[1][-1].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    with torch.no_grad():
        for row in tokens:
            model.base_model(input_ids=row[None], use_cache=False)
    hook.remove()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(outputs, seen, strict=True))


def test_a_block_that_cannot_be_run_is_named_with_its_class() -> None:
    model = model_of("llama")

    def broken(*args, **kwargs):
        raise KeyError("cache")

    find_blocks(model)[1][1].self_attn.forward = broken
    with pytest.raises(
        SQFTError, match=r"^block 1 of LlamaForCausalLM, a LlamaDecoderLayer, cannot be run alone \(Key"
    ):
        prune_model(model, TOKENS, Wanda(), 0.5)


def test_what_a_method_raises_is_its_own() -> None:
    class Broken(Wanda):
        def prune(self, weight, statistic, pattern):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        prune_model(model_of("llama"), TOKENS, Broken(), 0.5)


def test_hidden_states_that_change_between_blocks_are_seen(tmp_path, monkeypatch) -> None:
    """In one micro-batch as the model computes them; in several they are refused."""
    model = model_of("llama")
    _, layers = find_blocks(model)
    layers[1].register_forward_pre_hook(lambda module, args: (2 * args[0] + 1, *args[1:]))
    inputs: list[torch.Tensor] = []

    def on_block(index: int, run: blocks.BlockRun) -> None:
        inputs.append(run.states[0])
        run.advance()

    blocks.run_blocks(model, TOKENS, on_block)
    seen: list[torch.Tensor] = []
    layers[1].input_layernorm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        model.base_model(TOKENS, use_cache=False)
    assert torch.equal(inputs[1], seen[0])
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 16)
    with pytest.raises(SQFTError, match="LlamaForCausalLM changes its hidden states between two blocks"):
        prune_model(model, TOKENS, Wanda(), 0.5)


def test_a_job_goes_on_with_all_that_a_block_has_returned(tmp_path, monkeypatch) -> None:
    source = tmp_path / "source"
    model_of("hy_v4").save_pretrained(source)
    tokenizer().save_pretrained(source)
    options = {**SMALL, "exclude": ["experts.gate_up_proj", "experts.down_proj"]}
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 32)
    prune_folder(source, tmp_path / "many", **options)

    class Killed(BaseException):
        pass

    finished = drive.InFolder.finished

    def killed(self, block, rows, run):
        finished(self, block, rows, run)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(drive.InFolder, "finished", killed)
        with pytest.raises(Killed):
            prune_folder(source, tmp_path / "resumed", **options)
    prune_folder(source, tmp_path / "resumed", **options)
    many, resumed = ModelFolder(tmp_path / "many"), ModelFolder(tmp_path / "resumed")
    assert all(torch.equal(many.mask(name), resumed.mask(name)) for name in many.masks)


def test_a_block_that_is_called_twice_is_refused() -> None:
    with pytest.raises(SQFTError, match=r"HrmTextForCausalLM calls block \d a second time or out of order"):
        prune_model(model_of("hrm_text"), TOKENS, Wanda(), 0.5, exclude=["o_proj"])  # little is asked for by name


def test_a_failing_check_is_no_refusal() -> None:
    def wrong() -> None:
        raise AssertionError("other logits")

    assert outcome(wrong).startswith("crash: AssertionError other logits")
    assert find_linears(model_of("llama"))
