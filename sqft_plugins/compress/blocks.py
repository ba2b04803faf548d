"""Calibration text through the decoder, block by block, in micro-batches.

The model's own forward pass hands every block the arguments that it needs (attention masks, rotary embeddings, ALiBi),
so blocks are worked on from inside that pass:

1. `inputs_of`, for every micro-batch but the first: the pass ends before block 0, whose inputs wait.
2. `go_through`, for the first micro-batch: the pass runs to the end. In the place of each block, the block is worked on
   with all micro-batches, one after the other, and its outputs wait as the inputs of the next.

All micro-batches have the same number of equally long sequences without padding, so the arguments of the first hold for
the others; for arguments that depend on the text, `_check_alike` refuses more than one micro-batch. What a block
returns beside its state, and the model hands to the next (GLM's chosen keys, ZAYA's routing), each micro-batch has of
its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqft_plugins.errors import SQFTError, first_line
from sqft_plugins.structure import body_of, find_blocks

MICRO_TOKENS = 4096
"""Tokens of a micro-batch: enough for a fast GEMM, and of a 7B model's widest layer 0.2 GB."""
NO_CALIBRATION = "use a method that needs no calibration, such as magnitude or round-to-nearest"


class StopBlock(Exception):  # noqa: N818 (a signal, not an error)
    """Raised by a hook inside a block where the rest of the block need not be computed."""


@dataclass
class Position:
    """How far a run over the blocks has come.

    block: the next to work on. states: its inputs, one [sequences, length, hidden] a micro-batch; None before the first
    block. further: where blocks return a tuple, what is in it behind the state (the routing of the layer before, say),
    one tuple a micro-batch; empty where they return the state alone. visiting: whether a layer is being worked on, so
    that what is raised is not the model's.
    """

    block: int = 0
    states: list[Tensor] | None = None
    further: list[tuple[Any, ...]] = field(default_factory=list)
    visiting: bool = False

    def output(self) -> Any:
        """What the block before returns for the first micro-batch."""
        assert self.states is not None
        return (self.states[0], *self.further[0]) if self.further else self.states[0]


class BlockRun:
    """One block over all micro-batches.

    position: with the inputs of the block; `advance` puts its outputs in their place. args, kwargs: what the model
    gives the block beside its state, for the first micro-batch.
    """

    def __init__(self, block: Callable[..., Any], position: Position, args: tuple[Any, ...], kwargs: dict[str, Any]):
        assert position.states is not None
        self.position, self.states, self.further = position, list(position.states), list(position.further)
        self._block, self._args, self._kwargs = block, args, kwargs

    def _compute(self, index: int) -> Any:
        """The block over one micro-batch: with its own of what the block before has returned."""
        args, kwargs = self._args, self._kwargs
        if index and self.position.further:
            pairs = zip(self.position.further[0], self.position.further[index], strict=True)
            own = {id(first): mine for first, mine in pairs if first is not None}  # None is no value of the block's
            args = tuple(own.get(id(value), value) for value in args)
            kwargs = {name: own.get(id(value), value) for name, value in kwargs.items()}
        return self._block(self.states[index], *args, **kwargs)

    def look(self, next_batch: Callable[[], None]) -> None:
        """Runs the block for what hooks see in it, which may end it early with StopBlock; `next_batch` is called before
        each micro-batch."""
        for index in range(len(self.states)):
            next_batch()
            try:
                self._compute(index)
            except StopBlock:
                self.position.visiting = False
                continue

    def advance(self) -> None:
        """Runs the block and keeps its outputs."""
        further = []
        for index in range(len(self.states)):
            output = self._compute(index)
            if isinstance(output, tuple | list):  # OpenAI's first GPT returns a list
                further.append(tuple(output[1:]))
            self.states[index] = output[0] if isinstance(output, tuple | list) else output
        self.further = further


OnBlock = Callable[[int, BlockRun], None]
"""(number of the block, the block over all micro-batches): calls `run.advance()` once."""


def run_blocks(model: PreTrainedModel, tokens: Tensor, on_block: OnBlock, position: Position | None = None) -> None:
    """Calls `on_block` for each decoder block in order.

    tokens: int64 [sequences, length]. position: where an earlier run was left off; it moves along. Raises SQFTError for
    tokens outside the vocabulary, for a model whose blocks get arguments that depend on the text where there is
    more than one micro-batch, and for one whose blocks cannot be run so.
    """
    position = Position() if position is None else position
    first, *others = split(check_tokens(model, tokens), MICRO_TOKENS)
    with torch.no_grad(), _as_own_errors(model, tokens.shape[1], position):
        waiting = [inputs_of(model, batch) for batch in others] if position.states is None else []
        go_through(model, first, waiting, on_block, position)


class Inputs(Exception):  # noqa: N818 (a signal, not an error)
    """The inputs of block 0, which `inputs_of` lets out of the model's forward pass."""

    def __init__(self, state: Tensor, arguments: tuple[tuple[Any, ...], dict[str, Any]]):
        self.state, self.arguments = state, arguments


def inputs_of(model: PreTrainedModel, batch: Tensor) -> Inputs:
    """The inputs of block 0 for a micro-batch [sequences, length]; no block is computed."""

    def forward(*args: Any, **kwargs: Any) -> NoReturn:
        state, args, kwargs = _state_of(model, args, kwargs)
        raise Inputs(state, (args, kwargs))

    with _in_the_place_of({find_blocks(model)[1][0]: forward}):
        try:
            run_body(model, batch)
        except Inputs as inputs:
            return inputs.with_traceback(None)
    raise SQFTError(f"model {type(model).__name__} never calls its first block: give a decoder model")


def go_through(
    model: PreTrainedModel, batch: Tensor, waiting: list[Inputs], on_block: OnBlock, position: Position
) -> None:
    """Runs the model over the first micro-batch and calls `on_block` in the place of each block from `position` on.

    waiting: the inputs of block 0 for the other micro-batches; they are taken out of the list.
    """
    start = position.block

    def forward_of(index: int, block: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            state, args, kwargs = _state_of(model, args, kwargs)
            if index < start - 1:
                return (state, *position.further[0]) if position.further else state
            if index < start:  # the last block of an earlier run: here its outputs come in
                return position.output()
            if index != position.block:
                raise SQFTError(
                    f"model {type(model).__name__} calls block {index} a second time or out of order, so it cannot be "
                    f"calibrated block by block: {NO_CALIBRATION}"
                )

            if position.states is None:  # block 0: here all micro-batches come together
                _check_alike([inputs.arguments for inputs in waiting], (args, kwargs))
                position.states = [state, *(inputs.state for inputs in waiting)]
                waiting.clear()
            elif state is not position.states[0]:  # the model does something between its blocks
                _check_single(model, position.states)
                position.states = [state]

            run = BlockRun(block, position, args, kwargs)
            on_block(index, run)
            position.block, position.states, position.further = index + 1, run.states, run.further
            return position.output()

        return forward

    blocks = find_blocks(model)[1]
    with _in_the_place_of({block: forward_of(index, block.forward) for index, block in enumerate(blocks)}):
        run_body(model, batch)


def _state_of(
    model: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """The state and the other arguments, by position and by name, of a call of a block."""
    kwargs = dict(kwargs)
    state, args = (args[0], args[1:]) if args else (kwargs.pop("hidden_states", None), args)
    if not isinstance(state, Tensor) or state.is_meta:
        what = "no hidden states" if not isinstance(state, Tensor) else "hidden states without values"
        raise SQFTError(
            f"model {type(model).__name__} gives its blocks {what}, so it cannot be calibrated block by block: "
            f"{NO_CALIBRATION}"
        )
    return state, args, kwargs


def _check_single(model: PreTrainedModel, states: list[Tensor]) -> None:
    if len(states) > 1:
        raise SQFTError(
            f"model {type(model).__name__} changes its hidden states between two blocks, which is seen in one "
            f"micro-batch alone: lower --sequences or --length until they are at most {MICRO_TOKENS} tokens together"
        )


@contextmanager
def _in_the_place_of(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """In here each module computes the function beside it."""
    with ExitStack() as stack:
        for module, forward in forwards.items():
            module.forward = forward
            stack.callback(delattr, module, "forward")  # then the class's own shows again
        yield


def run_body(model: PreTrainedModel, tokens: Tensor) -> None:
    """The model without its head: the logits of a large vocabulary would need more memory than the model."""
    body_of(model)(input_ids=tokens, use_cache=False)


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
def _as_own_errors(model: PreTrainedModel, length: int, position: Position) -> Iterator[None]:
    """What the model's own code raises, in a line that names the block. Positions that are computed end, too, in some
    models (GPT-J, MPT), which say so in an error of their own."""
    try:
        yield
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, SQFTError | torch.OutOfMemoryError) or position.visiting:
            raise
        longest = _longest(model)
        if 0 < longest < length and isinstance(error, IndexError | ValueError | RuntimeError):
            raise _too_long(length, longest) from error
        blocks = find_blocks(model)[1]
        block = blocks[min(position.block, len(blocks) - 1)]
        raise SQFTError(
            f"block {position.block} of {type(model).__name__}, a {type(block).__name__}, cannot be run alone "
            f"({type(error).__name__}: {first_line(error)}): {NO_CALIBRATION}"
        ) from error


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
