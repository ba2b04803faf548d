"""Calibration text through the decoder, block by block, in micro-batches.

The model's own forward pass runs over the first micro-batch and so hands every block the arguments that it needs
(attention masks, rotary embeddings, ALiBi). All micro-batches have the same number of equally long sequences without
padding, so these arguments hold for the others too, which wait before each block and take it right after the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import find_blocks

MICRO_TOKENS = 4096
"""Tokens of a micro-batch: enough for a fast GEMM, and of a 7B model's widest layer 0.2 GB."""


class StopBlock(Exception):  # noqa: N818 (a signal, not an error)
    """Raised by a hook inside a block where the rest of the block need not be computed."""


class BlockRun:
    """One block over all micro-batches.

    states: its inputs, one [sequences, length, hidden] a micro-batch; `advance` puts its outputs in their place.
    """

    def __init__(self, block: Callable, states: list[Tensor], args: tuple, kwargs: dict[str, Any]):
        self.states = states
        self.returns_tuple = False
        self._block, self._args, self._kwargs = block, args, kwargs

    def look(self, next_batch: Callable[[], None]) -> None:
        """Runs the block for what hooks see in it, which may end it early with StopBlock; `next_batch` is called before
        each micro-batch."""
        for state in self.states:
            next_batch()
            try:
                self._block(state, *self._args, **self._kwargs)
            except StopBlock:
                continue

    def advance(self) -> None:
        """Runs the block and keeps its outputs."""
        for index, state in enumerate(self.states):
            output = self._block(state, *self._args, **self._kwargs)
            self.returns_tuple = isinstance(output, tuple)
            self.states[index] = output[0] if isinstance(output, tuple) else output


class _Caught(Exception):  # noqa: N818
    def __init__(self, state: Tensor, arguments: tuple[tuple, dict]):
        self.state, self.arguments = state, arguments


def run_blocks(
    model: PreTrainedModel,
    tokens: Tensor,
    on_block: Callable[[int, BlockRun], None],
    first: int = 0,
    states: Sequence[Tensor] | None = None,
    returns_tuple: bool = False,
) -> None:
    """Calls `on_block(index, run)` for each decoder block in order; it must call `run.advance()` once.

    tokens: int64 [sequences, length]. first, states, returns_tuple: where an earlier run was left off: the block to go
    on with, its inputs, and what blocks return. Raises SQFTError for tokens outside the vocabulary, and for a
    model whose blocks get arguments that depend on the text where there is more than one micro-batch.
    """
    batches = split(check_tokens(model, tokens), MICRO_TOKENS)
    _, blocks = find_blocks(model)
    waiting: list[_Caught] = []

    def forward_of(index: int, block: Callable) -> Callable:
        def forward(state: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal states, returns_tuple
            if len(waiting) < len(batches) - 1 and states is None:
                raise _Caught(state, (args, kwargs))
            if index >= first:
                if states is None:
                    _check_alike([caught.arguments for caught in waiting], (args, kwargs))
                    states = [state, *(caught.state for caught in waiting)]
                run = BlockRun(block, list(states), args, kwargs)
                on_block(index, run)
                states, returns_tuple = run.states, run.returns_tuple
                state = states[0]
            return (state,) if returns_tuple else state

        return forward

    for index, block in enumerate(blocks):
        block.forward = forward_of(index, block.forward)  # type: ignore[method-assign]
    try:
        with torch.no_grad(), _within_positions(model, tokens.shape[1]):
            for batch in batches[1:] if states is None else []:
                try:
                    run_body(model, batch)
                except _Caught as caught:
                    waiting.append(caught.with_traceback(None))
            run_body(model, batches[0])
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def run_body(model: PreTrainedModel, tokens: Tensor) -> None:
    """The model without its head: the logits of a large vocabulary would need more memory than the model."""
    model.base_model(input_ids=tokens, use_cache=False)


def split(tokens: Tensor, micro_tokens: int) -> list[Tensor]:
    """[sequences, length] → equal micro-batches of at most `micro_tokens` tokens (at least one sequence each)."""
    sequences, length = tokens.shape
    size = max(n for n in range(1, sequences + 1) if sequences % n == 0 and (n == 1 or n * length <= micro_tokens))
    return list(tokens.split(size))


def check_tokens(model: PreTrainedModel, tokens: Tensor | None) -> Tensor:
    """Raises SQFTError for no tokens, for those of another model's tokenizer, and for sequences that are longer than a
    model with learned positions has positions."""
    if tokens is None or tokens.numel() == 0:
        raise SQFTError("the method needs calibration tokens: give a batch [sequences, length]")
    vocabulary = len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    if int(tokens.max()) >= vocabulary:
        raise SQFTError(
            f"token {int(tokens.max())} is outside the model's vocabulary of {vocabulary}: "
            "the tokenizer is another model's, give the right one"
        )
    longest = learned_positions(model)
    if longest is not None and tokens.shape[1] > longest:
        raise _too_long(tokens.shape[1], longest)
    return tokens


def learned_positions(model: PreTrainedModel) -> int | None:
    """The number of positions of a model that looks them up in a table (GPT-2, OPT); None where they are computed, so
    that any length works."""
    longest = _longest(model)
    tables = (module for module in model.modules() if isinstance(module, nn.Embedding))
    own = model.get_input_embeddings()
    # a table has the longest sequence, and a few more rows: OPT and BART begin at the third
    found = any(longest <= len(table.weight) <= longest + 8 for table in tables if table is not own and longest)
    return longest if found else None


def _longest(model: PreTrainedModel) -> int:
    """The longest sequence by the configuration; 0 where it names none."""
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len", "n_positions"))
    return next((number for number in found if isinstance(number, int)), 0)


def _too_long(length: int, longest: int) -> SQFTError:
    return SQFTError(f"length={length} is more than the {longest} positions that the model has: lower it")


@contextmanager
def _within_positions(model: PreTrainedModel, length: int) -> Iterator[None]:
    """Positions that are computed end, too, in some models (GPT-J, MPT), which say so in an error of their own."""
    try:
        yield
    except (IndexError, ValueError, RuntimeError) as error:
        longest = _longest(model)
        if isinstance(error, SQFTError) or not 0 < longest < length:
            raise
        raise _too_long(length, longest) from error


def _check_alike(others: Sequence[Any], own: Any) -> None:
    if not all(_alike(own, other) for other in others):
        raise SQFTError(
            "the model gives its blocks arguments that depend on the text, so micro-batches cannot share them: lower "
            f"--sequences or --length until they are at most {MICRO_TOKENS} tokens together"
        )


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(map(_alike, a, b))
    return a is b or a == b
