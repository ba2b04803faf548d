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
from sqft_plugins.grid import pack

END = ".weight_packed"


def check_recodable(source: ModelFolder) -> None:
    """Raises CheckpointError for a folder that is not `pack-quantized`."""
    if source.storage != PackQuantized.name:
        raise CheckpointError(
            f"model {source.path} is {source.storage}, a merge writes {PackQuantized.name}: expand a compact folder "
            "with `sqft compact --expand`, or make it from the sparse base with `sqft quantize`"
        )


def write_codes(source: ModelFolder, target: Path, codes: Mapping[str, Tensor], stamp: Stamp) -> None:
    """Copies the `pack-quantized` folder `source` into the empty folder `target` with other codes.

    codes: module → uint8 [out, in], 0..15; modules that are not in it keep theirs. One tensor is in memory at a time.
    stamp: of the new folder; its mask is that of `source`. Raises CheckpointError for a folder of another format.
    """
    check_recodable(source)
    writer = FolderWriter(source, target, {f"{m}{END}": {f"{m}{END}": source.spec(f"{m}{END}")} for m in codes})
    writer.copy_rest()
    for module, own in codes.items():
        writer.write(f"{module}{END}", pack(own))
    copy_side_files(source, target)
    write_config(target, source.config)
    write_sidecar(target, stamp, source.masks)
