"""The rank in force: with how many of its directions an adapter computes in one layer, now.

An adapter has two ranks. The *chosen* one is that of evaluation and merging (`set_active_rank`). The *drawn* one is
that of the training step that was begun last; the hooks in drawing.py draw it, once for each forward pass.

| situation                                   | what the hooks call           | drawn rank           | in force     |
|---------------------------------------------|-------------------------------|----------------------|--------------|
| training step: a forward with gradients, in | `draw` before it              | new                  | the drawn    |
| training mode                               |                               |                      |              |
| evaluation: a forward without gradients     | `put_aside` before it,        | gone, and back after | the chosen   |
| (`generate`, a reference model, logging)    | `take_up` after it            | it                   |              |
| gradient checkpointing: a forward that the  | nothing                       | that of its step     | the drawn    |
| backward pass runs again                    |                               |                      |              |
| torch.compile                               | `draw` outside the graph;     | new                  | the drawn,   |
|                                             | in it A is masked by `rows`   |                      | in one graph |

An adapter of a fixed rank has one choice, and nothing is drawn. In evaluation mode the chosen rank is in force whatever
was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sqft_plugins.elastic import slice_lora

NOTHING = (None, None)


@dataclass
class Ranks:
    """The ranks of one adapter in one layer.

    choices: the search space, largest first.
    chosen: the rank of evaluation and merging.
    share: what shares a drawn rank, "layer" or "module"; None for a fixed rank.
    drawn: the rank of the current training step, None where none was drawn.
    rows: `drawn` as True and False, bool [r_max, 1], for compiled code.
    """

    choices: list[int]
    chosen: int
    share: str | None = None
    drawn: int | None = None
    rows: Tensor | None = None
    _aside: tuple[int | None, Tensor | None] = field(default=NOTHING, repr=False)

    def draw(self, rank: int, A: Tensor) -> None:
        """Begins a training step at `rank`. A: [r_max, in], which says how many rows there are, and where."""
        self.drawn, self.rows = rank, torch.arange(len(A), device=A.device).unsqueeze(1) < rank

    def put_aside(self, forget: bool = False) -> None:
        """Puts the drawn rank aside: the chosen one is in force. forget: no `take_up` is to bring it back."""
        self._aside = NOTHING if forget else (self.drawn, self.rows)
        self.drawn, self.rows = NOTHING

    def take_up(self) -> None:
        """The rank that was put aside is in force again."""
        (self.drawn, self.rows), self._aside = self._aside, NOTHING

    def in_force(self, training: bool) -> int:
        """The drawn rank in training mode, where there is one, else the chosen rank."""
        return self.drawn if training and self.drawn is not None else self.chosen

    def sliced(self, A: Tensor, B: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """A [r_max, in], B [out, r_max] → those of the rank in force."""
        if self.rows is not None and training and torch.compiler.is_compiling():
            return A * self.rows, B  # one graph for all ranks: dynamo makes one for each int that it meets
        if len(self.choices) == 1:
            return A, B  # a fixed rank is the whole, also after a hotswap to another
        return slice_lora(A, B, self.in_force(training))

    def fix(self, rank: int) -> None:
        """Makes `rank` the only choice, as a hotswap and a combination do."""
        self.choices, self.chosen = [rank], rank
