"""`sqft export patch` and `sqft patch`."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import click
from pydantic import model_validator

from gguf_ext.settings import GGUF_FILE
from sqft_plugins.checkpoint.files import check_output_file
from sqft_plugins.cli.verb import AtRank, Found, Overwrite, verb
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import MODEL, THERE


class PatchSettings(AtRank):
    out: str = option(..., "Where to write. Must not exist.", "place", metavar="FILE.patch")

    @model_validator(mode="after")
    def _check_out(self) -> Self:
        check_output_file(self.out, self.overwrite)
        return self


class PatchedSettings(Overwrite):
    out: str = option(..., "The other file. Must not exist.", "place", metavar="FILE.gguf")


@verb(
    "sqft export patch gemma-Q4_K_M.gguf adapters/mine --out mine.patch",
    "sqft export patch gemma-Q4_K_M.gguf mine-Q4_K_M.gguf --out mine.patch",
    "sqft patch gemma-Q4_K_M.gguf mine.patch --out mine-Q4_K_M.gguf",
    name="patch",
    settings=PatchSettings,
)
@click.argument("base", type=MODEL, metavar="BASE.gguf")
@click.argument("merged", type=THERE, metavar="MERGED.gguf|ADAPTER")
def export_patch_command(base: str, merged: str, settings: PatchSettings) -> Found:
    """Write what a merge changes of BASE.gguf.

    The patch is some hundredths of the file, and makes MERGED.gguf of BASE.gguf, and BASE.gguf of that, bit for bit
    (`sqft patch`). An ADAPTER is merged first, at --rank, into a file that is not kept.
    """
    from gguf_ext.model.hub import locate
    from gguf_ext.patch import export_patch

    report = export_patch(locate(base), merged, settings.out, settings.rank, settings.overwrite)
    line = (
        f"{report['path']}: {report['bytes'] / 1e6:.2f} MB, {report['changed']:,} of {report['weights']:,} codes of "
        f"{report['tensors']} tensors ({report['changed'] / report['weights']:.2%})"
    )
    return Found(report, line)


@verb(
    "sqft patch gemma-Q4_K_M.gguf mine.patch --out mine-Q4_K_M.gguf",
    "sqft patch mine-Q4_K_M.gguf mine.patch --out gemma-Q4_K_M.gguf   # the very file that it was made from",
    name="patch",
    settings=PatchedSettings,
)
@click.argument("file", type=GGUF_FILE, metavar="FILE.gguf")
@click.argument("patch", type=THERE, metavar="FILE.patch")
def patch_command(file: str, patch: str, settings: PatchedSettings) -> Found:
    """Apply a patch to FILE.gguf, or take it back.

    A patch (`sqft export patch`) belongs to two files: of either it makes the other, bit for bit, which is checked by
    hashes before the new file has its name. FILE.gguf is only read.
    """
    from gguf_ext.patch import apply_patch

    done = apply_patch(file, Path(patch), settings.out, settings.overwrite)
    what = "the patch is taken back" if done.undone else "the patch is in it"
    return Found(done.as_dict(), f"{done.path}: {done.bytes / 1e6:.1f} MB, {what}, every bit checked")
