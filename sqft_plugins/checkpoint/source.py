"""One interface for every weight that can be read piece by piece, whatever stores it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from torch import Tensor

from sqft_plugins.grid import QuantizedWeight


class WeightSource(Protocol):
    """The linear weights of a model, read one at a time. Every weight is [out, in], also where the files hold it
    [in, out]. A module has the name that the model gives it.

    `ModelFolder` is one, whatever the folder's format (float, `pack-quantized`, compact, AutoGPTQ), and so is a model
    in memory (`gguf_ext.memory.ModelInMemory`). path: for messages.
    """

    path: Path

    def weight_shape(self, module: str) -> tuple[int, int]:
        """(out, in), without reading the weight."""
        ...

    def weight(self, module: str) -> Tensor:
        """The weight in its own float dtype, an INT4 one dequantized to float32."""
        ...

    def quantized(self, module: str) -> QuantizedWeight:
        """Codes, scales and zero points. Raises CheckpointError for a module that is not INT4."""
        ...

    def mask(self, module: str) -> Tensor | None:
        """bool [out, in], True = kept; None for a module without a mask."""
        ...
