"""An INT4 folder with other codes: same scales, zero points, mask and everything else, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.formats import PackQuantized
from sqft_plugins.checkpoint.stamp import Stamp, write_sidecar
from sqft_plugins.checkpoint.writer import FolderWriter, copy_side_files, write_config
from sqft_plugins.errors import CheckpointError
from sqft_plugins.grid import QuantizedWeight, pack

END = ".weight_packed"


class Recoded(ModelFolder):
    """A quantized model with other codes of some modules, as a quantization-aware adapter that is merged makes them:
    read as what is written with these codes.

    folder: the model, a folder or a file. codes: module → uint8 [out, in]; kept are the model's own wherever both have
    the same value (`QuantizedWeight.with_codes`).
    """

    def __init__(self, folder: ModelFolder, codes: Mapping[str, Tensor]):
        self.__dict__.update(vars(folder))
        self._folder = folder
        self.codes = {module: folder.quantized(module).with_codes(own).codes for module, own in codes.items()}

    def quantized(self, module: str) -> QuantizedWeight:
        stored = self._folder.quantized(module)
        return stored._replace(codes=self.codes[module]) if module in self.codes else stored

    def mask(self, module: str) -> Tensor | None:
        return self._folder.mask(module)


def check_recodable(source: ModelFolder) -> None:
    """Raises CheckpointError for a folder that is not `pack-quantized`."""
    if source.storage != PackQuantized.name:
        raise CheckpointError(
            f"model {source.path} is {source.storage}, a merge writes {PackQuantized.name}: expand a compact folder "
            "with `sqft compact --expand`, or make it from the sparse base with `sqft quantize`"
        )


def write_codes(source: Recoded, target: Path, stamp: Stamp) -> None:
    """Writes a `pack-quantized` folder with other codes into the empty folder `target`. One tensor is in memory at a
    time. stamp: of the new folder; its mask is that of `source`. Raises CheckpointError for a folder of another format.
    """
    check_recodable(source)
    writer = FolderWriter(source, target, {f"{m}{END}": {f"{m}{END}": source.spec(f"{m}{END}")} for m in source.codes})
    writer.copy_rest()
    for module, own in source.codes.items():
        writer.write(f"{module}{END}", pack(own, source.int4.grid.bits))
    copy_side_files(source, target)
    write_config(target, source.config)
    write_sidecar(target, stamp, source.masks)
