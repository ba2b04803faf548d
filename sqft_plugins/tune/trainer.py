"""transformers' Trainer with the loss at answer tokens, and what watches over it."""

from __future__ import annotations

from collections.abc import Sized
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import track
from sqft_plugins.tune.evaluation import HEURISTIC, Best, HeldOut
from sqft_plugins.tune.loss import answer_logits, answer_loss


class AnswerTrainer(Trainer):
    """A Trainer that computes logits at the answer's tokens only and keeps the order of its data.

    held_out: the examples that `evaluate` measures.
    best: is offered the adapter of each evaluation with its loss.
    """

    def __init__(self, *args: Any, held_out: HeldOut | None = None, best: Best | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.held_out, self.best = held_out, best
        # the mean over all the learned tokens of a step, also where it is cut into parts of unequal lengths
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, *args: Any) -> SequentialSampler:
        # `mix` has shuffled, the same for every process count
        return SequentialSampler(cast(Sized, self.train_dataset))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        head = self.accelerator.unwrap_model(model).get_output_embeddings()
        logits, targets = answer_logits(model, head, inputs, labels)
        loss = answer_loss(logits, targets, num_items_in_batch)
        if num_items_in_batch is not None and self.accelerator.num_processes > 1:
            loss = loss * self.accelerator.num_processes  # the gradients' mean over the processes shall be their sum
        if not bool(torch.isfinite(loss)):  # before the backward pass, where a gradient would be blamed
            where = f"loss={float(loss.detach())} at step {self.state.global_step + 1}"
            if (broken := broken_weight(model)) is not None:
                raise SQFTError(
                    f"{where}: {broken} of the model holds NaN or infinity, copy or convert the model again"
                )
            raise SQFTError(f"{where}: lower --learning-rate, or look for broken data")
        return (loss, logits) if return_outputs else loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        # not Trainer's own loop: it takes the mean of the batches' means, and its DataLoader draws a random number
        assert self.held_out is not None
        losses = self.held_out.losses(self.accelerator.unwrap_model(self.model), self.accelerator)
        if self.best is not None:
            self.best.offer(self.state.global_step, losses[HEURISTIC])
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in losses.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class Watch(TrainerCallback):
    """Shows the progress, and has the last step evaluated."""

    def __init__(self, what: str):
        self.what = what

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.bar = track(range(state.max_steps - state.global_step), self.what)
            next(self.bar, None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            next(self.bar, None)
        if state.global_step == state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True


def broken_weight(model: nn.Module) -> str | None:
    """The name of a weight that is not trained and not finite. Asked for when a loss is not: a look at each weight of a
    model that loads would cost every run, for a damage that hardly one has."""
    frozen = (one for one in model.named_parameters() if not one[1].requires_grad)
    return next((name for name, weight in frozen if not bool(torch.isfinite(weight).all())), None)


def stop_at_broken_gradients(model: nn.Module) -> None:
    """From now on a gradient that is not finite ends the backward pass with SQFTError, naming the parameter of
    the first such gradient, and so the layer where it began."""

    def check(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise SQFTError(
                f"the gradient of {name} is not finite: lower --learning-rate or --alpha, or look for broken data"
            )

    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(partial(check, name))
