"""The loss of held-out examples during training. It draws no random number, so training goes on as without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sqft_plugins.modes import evaluating
from sqft_plugins.tune.data import Row, batches_by_length
from sqft_plugins.tune.loss import answer_logits, answer_loss

HEURISTIC = "loss"
"""The name of the loss that decides what is best: at the heuristic rank, or at the only one."""
LARGEST = "loss_at_max_rank"


def evaluations(log: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The evaluations in Trainer's log: {"step": …, "loss": …, "loss_at_max_rank": … where the adapter is elastic}."""
    names = {f"eval_{name}": name for name in (HEURISTIC, LARGEST)}
    return [
        {"step": row["step"]} | {name: row[key] for key, name in names.items() if key in row}
        for row in log
        if f"eval_{HEURISTIC}" in row
    ]


class HeldOut:
    """Examples that are not learned, in batches of about equal length.

    set_rank: called with "heuristic" and "max" where the adapter is elastic; None for a fixed rank.
    """

    def __init__(self, rows: Sequence[Row], batch_size: int, pad: int, set_rank: Callable[[str], Any] | None):
        self.batches, _ = batches_by_length(rows, batch_size, pad)
        self.set_rank = set_rank

    @torch.no_grad()
    def losses(self, model: nn.Module, accelerator: Any) -> dict[str, float]:
        """Mean cross-entropy of the learned tokens, by the name of the rank. Several processes share the batches."""
        with evaluating(model):
            if self.set_rank is None:
                return {HEURISTIC: self._loss(model, accelerator)}
            found = {}
            for name, rank in ((LARGEST, "max"), (HEURISTIC, "heuristic")):
                self.set_rank(rank)
                found[name] = self._loss(model, accelerator)
            return found

    def _loss(self, model: nn.Module, accelerator: Any) -> float:
        head = model.get_output_embeddings()  # type: ignore[operator]
        total = torch.zeros(2, dtype=torch.float64, device=accelerator.device)  # sum of the losses, tokens
        for batch in self.batches[accelerator.process_index :: accelerator.num_processes]:
            inputs: dict[str, Tensor] = {key: value.to(accelerator.device) for key, value in batch.items()}
            logits, targets = answer_logits(model, head, inputs, inputs.pop("labels"))
            total += torch.stack([answer_loss(logits, targets, 1).double(), torch.tensor(targets.numel()).to(total)])
        loss, tokens = accelerator.reduce(total, "sum").tolist()
        return float(loss / max(tokens, 1))


class Best:
    """The adapter with the smallest held-out loss so far, kept on the CPU."""

    def __init__(self, model: nn.Module):
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.step: int | None = None
        self.loss = float("inf")
        self.tensors: dict[str, Tensor] = {}

    def offer(self, step: int, loss: float) -> None:
        if loss < self.loss:
            self.step, self.loss = step, loss
            self.tensors = {name: p.detach().to("cpu", copy=True) for name, p in self.parameters.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Writes it into the model."""
        for name, tensor in self.tensors.items():
            self.parameters[name].copy_(tensor)
