"""One interface for every weight that can be read piece by piece, whatever stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from sqft_plugins.grid import QuantizedWeight


class WeightSource(Protocol):
    """The linear weights of a model, read one at a time. Every weight is [out, in], also where the files hold it
    [in, out]. A module has the name that the model gives it.

    | what is read                                                     | by                                |
    |------------------------------------------------------------------|-----------------------------------|
    | a folder: float, or quantized in a format of formats/            | `checkpoint.folder.ModelFolder`   |
    | an INT4 folder with a quantization-aware adapter merged          | `checkpoint.recode.Recoded`       |
    | a model in memory                                                | `gguf_ext.memory.ModelInMemory`   |
    | a GGUF file, by the names of its tensors                         | `gguf_ext.inspector.GGUFWeights`  |

    path: for messages.
    """

    path: Path

    def weight_shape(self, module: str) -> tuple[int, int]:
        """(out, in), without reading the weight."""
        ...

    def module_bytes(self, module: str) -> int:
        """Bytes on disk of the weight, in whatever format: with scales and zero points, without the mask file."""
        ...

    def is_quantized(self, module: str) -> bool:
        """Whether the weight is stored as codes."""
        ...

    def weight(self, module: str) -> Tensor:
        """The weight in its own float dtype; a quantized one dequantized to float32."""
        ...

    def quantized(self, module: str) -> QuantizedWeight:
        """Codes, scales and zero points. Raises CheckpointError for a module that is not quantized."""
        ...

    def mask(self, module: str) -> Tensor | None:
        """bool [out, in], True = kept; None for a module without a mask."""
        ...
