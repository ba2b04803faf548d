"""A quantized folder with other codes: same scales, zero points, mask and everything else, byte for byte."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.shards import replace_tensor
from sqft_plugins.checkpoint.stamp import Stamp, write_sidecar
from sqft_plugins.checkpoint.writer import CONFIG, copy_side_files, copy_weight_files, write_config
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.progress import track


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
    """Writes the folder with other codes into the empty folder `target`: its weight files are copied, and the codes in
    them replaced, one tensor in memory at a time.

    stamp: of the new folder; its mask is that of `source`. None for a folder of another program, which has neither, and
    whose config.json stays as it is, byte for byte. Raises CheckpointError for a format in which codes cannot be
    changed alone.
    """
    stored = source.int4
    stored.check_recodable()
    copy_weight_files(source, target)
    for module, own in track(source.codes.items(), "writing codes"):
        name = stored.codes_name(module)
        replace_tensor(target / source.file(name).relative_to(source.path), name, stored.packed_codes(own))

    copy_side_files(source, target)
    if stamp is None:
        shutil.copyfile(source.path / CONFIG, target / CONFIG)
    else:
        write_config(target, source.config)
        write_sidecar(target, stamp, source.masks)
