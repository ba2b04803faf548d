"""An INT4 folder with other codes: same scales, zero points, mask and everything else, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.stamp import Stamp, write_sidecar
from sqft_plugins.checkpoint.writer import FolderWriter, copy_side_files, write_config
from sqft_plugins.grid import QuantizedWeight


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


def write_codes(source: Recoded, target: Path, stamp: Stamp | None) -> None:
    """Writes the folder with other codes into the empty folder `target`. One tensor is in memory at a time.

    stamp: of the new folder; its mask is that of `source`. None for a folder of another program, which has neither.
    Raises CheckpointError for a format in which codes cannot be changed alone.
    """
    stored = source.int4
    stored.check_recodable()
    changed = [stored.codes_name(module) for module in source.codes]
    writer = FolderWriter(source, target, {name: {name: source.spec(name)} for name in changed})
    writer.copy_rest()
    for module, own in source.codes.items():
        writer.write(stored.codes_name(module), stored.packed_codes(own))

    copy_side_files(source, target)
    write_config(target, source.config)
    if stamp is not None:
        write_sidecar(target, stamp, source.masks)
