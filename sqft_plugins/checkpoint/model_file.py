"""Models that are files of another project's, read as if they were folders; and any model by its path."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.model_files import open_file

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class ModelFile(ModelFolder):
    """What a plug-in's hook `sqft_models` opens. A plug-in derives from this class.

    It answers as a `ModelFolder` does, with the names and the row order of a checkpoint; what a folder keeps in files
    of transformers' is asked of it by the methods below. path: the file, of several the first.
    """

    @property
    def label(self) -> str:
        """Each of its tensors has a type of its own."""
        return "quantized"

    def transformers_config(self) -> PretrainedConfig:
        """The configuration, a new object each time. Raises SQFTError for a model that transformers does not have."""
        raise NotImplementedError

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, a new object each time. Raises SQFTError for a tokenizer that cannot be made exactly."""
        raise NotImplementedError

    def load(
        self, dtype: torch.dtype | str = "auto", fill: Callable[[str, bool], Tensor] | None = None, **kwargs: Any
    ) -> PreTrainedModel:
        """The model with plain float linears, exact in float32.

        fill: (module, whether the layer is a Conv1D) → what takes the place of a quantized weight, as the layer has it.
        kwargs: of `from_pretrained`.
        """
        raise NotImplementedError

    def quantized_rows(self, module: str, rows: slice) -> QuantizedWeight:
        """Some rows of `quantized`, read without the others where the file allows it."""
        return self.quantized(module).take(rows)

    def check_grids(self, modules: Iterable[str]) -> None:
        """Raises SQFTError, naming tensor and type, for a module whose weight is of a type without a grid."""
        raise NotImplementedError

    def holds_codes_in(self, dtype: torch.dtype) -> bool:
        """Whether every code follows from its weight once that is rounded to `dtype`."""
        raise NotImplementedError

    def check_merge(self, out: Path, modules: Collection[str], note: Mapping[str, Any], overwrite: bool) -> None:
        """Raises, before any work, what `write_codes` would raise for these modules and this note."""
        raise NotImplementedError

    def write_codes(
        self, out: Path, codes: Mapping[str, Tensor], note: Mapping[str, Any], overwrite: bool = False
    ) -> Path:
        """Writes the file with other codes of some modules and all else as it is → the file, of several the first.

        codes: module → uint8 [out, in], in the row order of the checkpoint; each is asked for once.
        note: what the file says of the merge: "adapter", "adapter_hash", and whatever else JSON holds.

        Raises SQFTError for an adapter that is in the file already, and for a file that changes meanwhile.
        """
        raise NotImplementedError

    def publish(self, place: Path, out: Path) -> None:
        """Moves what `write_codes` wrote into the folder `place`, under the name of `out`, beside `out`; what was there
        goes, whole or in parts. A process that is killed leaves the old file, the new one, or none."""
        raise NotImplementedError


def open_model(model: str | Path) -> ModelFolder:
    """The model of a folder, or of a file that a plug-in reads. Raises CheckpointError for what is neither."""
    return open_file(model) or ModelFolder(model)
