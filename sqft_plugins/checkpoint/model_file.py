"""Models that are files of another project's, read as if they were folders; and any model by its path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.model_files import open_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class ModelFile(ModelFolder):
    """What a plug-in's hook `sqft_models` opens. A plug-in derives from this class.

    It answers as a `ModelFolder` does, with the names and the row order of a checkpoint; what a folder keeps in files
    of transformers' is asked of it by the methods below. path: the file, of several the first.
    """

    def transformers_config(self) -> PretrainedConfig:
        """The configuration, a new object each time. Raises SQFTError for a model that transformers does not have."""
        raise NotImplementedError

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, a new object each time. Raises SQFTError for a tokenizer that cannot be made exactly."""
        raise NotImplementedError

    def load(self, dtype: torch.dtype | str = "auto", **kwargs: Any) -> PreTrainedModel:
        """The model with plain float linears, exact in float32; kwargs are those of `from_pretrained`."""
        raise NotImplementedError

    def merged_target(self, out: Path) -> Path:
        """The file that `write_codes` leaves when it is to write to `out`: of several the first. Raises SQFTError for a
        name that does not fit."""
        raise NotImplementedError

    def write_codes(self, out: Path, codes: Mapping[str, Tensor], note: Mapping[str, Any], overwrite: bool) -> Path:
        """Writes the file with other codes of some modules, all else as it is, and returns its path.

        codes: module → uint8 [out, in], in the row order of the checkpoint. note: what the file says of its making.
        """
        raise NotImplementedError


def open_model(model: str | Path) -> ModelFolder:
    """The model of a folder, or of a file that a plug-in reads. Raises CheckpointError for what is neither."""
    return open_file(model) or ModelFolder(model)
