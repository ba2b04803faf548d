"""The importance matrix: for every linear layer of the decoder blocks the mean square of each of its inputs, over a
calibration text. llama.cpp's quantizer weighs the error of a weight with it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from sqft_plugins.compress.blocks import BlockRun
from sqft_plugins.compress.drive import Compressed, Compression, InMemory
from sqft_plugins.compress.float_model import Calibration, FloatModel
from sqft_plugins.compress.report import Row
from sqft_plugins.hardware import release_memory


class Reading(InMemory):
    """A folder that is run and left as it is; one block is in memory."""

    def __init__(self, model: FloatModel):
        super().__init__(model.skeleton.model)
        self.skeleton = model.skeleton

    def load(self, index: int, block: nn.Module) -> None:
        self.skeleton.load_block(index, block)

    def finished(self, block: nn.Module, rows: list[Row], run: BlockRun | None) -> None:
        self.skeleton.free(block)
        release_memory()
        super().finished(block, rows, run)


def importance_matrix(model: str | Path, calibration: Calibration) -> dict[str, Tensor]:
    """Module → float32 [in], the mean of x². Each layer sees what the float model gives it. Raises SQFTError for a
    model that is quantized, texts that are too short, and inputs that are not finite."""
    source = FloatModel(model)
    tokens = calibration.tokens(source.path, "norm", source.skeleton)
    assert tokens is not None
    found: dict[str, Tensor] = {}

    def keep(name: str, weight: Tensor, statistic: Tensor | None) -> Compressed:
        assert statistic is not None
        found[name] = statistic.square() / tokens.numel()  # of ‖x‖ over all tokens
        return Compressed(weight, {"sparsity": 0.0, "error": 0.0}, {})

    with torch.no_grad():
        Compression("importance", source.modules, "norm", tokens, keep).run(Reading(source))
    return found
