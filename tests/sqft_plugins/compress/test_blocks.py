"""Blocks in micro-batches."""

from __future__ import annotations

import pytest
import torch
from helpers_compress import SMALL, tokens

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.compress import blocks
from sqft_plugins.compress.prune import prune_folder, prune_model
from sqft_plugins.compress.quantize import quantize_folder
from sqft_plugins.compress.wanda import Wanda
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_blocks


def test_blocks_in_micro_batches_compute_what_the_model_computes(tiny_model, family, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 64)
    model = tiny_model(family).float()
    outputs: list[torch.Tensor] = []

    def on_block(index: int, run: blocks.BlockRun) -> None:
        assert len(run.states) == 3
        run.advance()
        outputs[:] = run.states

    blocks.run_blocks(model, tokens(6), on_block)
    seen: list[torch.Tensor] = []
    hook = find_blocks(model)[1][-1].register_forward_hook(
        lambda module, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        model.base_model(tokens(6), use_cache=False)
    hook.remove()
    # the same arithmetic on other batch sizes: a GEMM may sum in another order
    torch.testing.assert_close(torch.cat(outputs), seen[0], rtol=1e-5, atol=1e-5)
    assert "forward" not in vars(find_blocks(model)[1][0])


def test_micro_batches_are_equal_and_no_larger_than_asked() -> None:
    assert [len(part) for part in blocks.split(tokens(6), 64)] == [2, 2, 2]
    assert [len(part) for part in blocks.split(tokens(6), 10**6)] == [6]
    assert [len(part) for part in blocks.split(tokens(7), 100)] == [1] * 7
    assert [len(part) for part in blocks.split(tokens(2), 8)] == [1, 1]


def test_micro_batches_prune_and_quantize_as_one_batch_does(folder_of, tmp_path, monkeypatch, family) -> None:
    reports = {}
    for name, micro in (("one", 4096), ("many", 32)):
        monkeypatch.setattr(blocks, "MICRO_TOKENS", micro)
        prune_folder(folder_of(family), tmp_path / f"{name}-pruned", sparsity=0.5, **SMALL)
        reports[name] = quantize_folder(tmp_path / f"{name}-pruned", tmp_path / name, "gptq", **SMALL)
    one, many = ModelFolder(tmp_path / "one"), ModelFolder(tmp_path / "many")
    assert [row["name"] for row in reports["one"]["layers"]] == [row["name"] for row in reports["many"]["layers"]]
    # sums in another order: a score on the border of a row's half, or a value on that of two codes, may fall otherwise
    same = [(one.mask(module) == many.mask(module)).float().mean() for module in one.int4.modules]
    assert min(same) > 0.99
    codes = [(one.quantized(m).codes == many.quantized(m).codes).float().mean() for m in one.int4.modules]
    assert min(codes) > 0.9


def test_arguments_that_depend_on_the_text_are_refused_in_micro_batches(tiny_model, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "MICRO_TOKENS", 32)
    model = tiny_model("llama")
    first = find_blocks(model)[1][0]
    embedded = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: embedded.append(output))
    first.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "extra": embedded[-1]}), with_kwargs=True
    )
    with pytest.raises(SQFTError, match=r"arguments that depend on the text.*lower --sequences"):
        prune_model(model, tokens(), Wanda(), 0.5)


def test_an_argument_that_is_none_stays_so_in_every_micro_batch() -> None:
    """Also where the block before has returned None beside its state: the block may have no default for it."""
    seen = []

    def block(state: torch.Tensor, routing: object, *, mask: object) -> torch.Tensor:
        seen.append((routing, mask))
        return state

    own = [torch.zeros(1), torch.ones(1)]
    position = blocks.Position(1, [torch.zeros(1, 2, 4), torch.ones(1, 2, 4)], [(None, own[0]), (None, own[1])])
    blocks.BlockRun(block, position, (own[0],), {"mask": None}).advance()
    assert seen == [(own[0], None), (own[1], None)]
