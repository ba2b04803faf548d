"""sqft quantize: a float model onto a grid, with the mask kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from sqft_plugins.checkpoint.files import check_output_file, check_output_folder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.compress.settings import QuantizeSettings, maker_of
from sqft_plugins.errors import SQFTError
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import MODEL_NAME


class Place(Overwrite):
    out: str = option(..., "Where to write. Must not exist.", "place", metavar="DIR|FILE.gguf")


@verb(
    "sqft quantize models/gemma-50 --out models/gemma-50-int4",
    "sqft quantize models/gemma-50 --method gptq --out models/gemma-50-int4",
    "sqft quantize models/gemma-50 --group-size 64 --asymmetric --out models/gemma-50-int4",
    "sqft quantize models/gemma-50 --group-size -1 --out models/gemma-50-int4 --json",
    "sqft quantize models/gemma-50 --grid int3 --asymmetric --method gptq --out models/gemma-50-int3",
    "sqft quantize models/gemma --grid q4_0 --out gemma-q4_0.gguf                  # GPTQ on llama.cpp's scales",
    "sqft quantize models/gemma --grid q4_k_m --method llama.cpp --out gemma.gguf  # as llama-quantize does it",
    settings=QuantizeSettings,
    place=Place,
)
@click.argument("model", type=MODEL_NAME)
def command(model: str, settings: QuantizeSettings, place: Place) -> Found:
    """Put MODEL on a grid: INT4, or that of --grid.

    MODEL is a float model, sparse or dense; the linear layers of its blocks get codes, and pruned weights stay zero.

    int2 to int8 make a compressed-tensors `pack-quantized` folder, which stock transformers and stock vLLM load; the
    kernels, vLLM on a CPU and the compact form are for int4. gptq reads a block, quantizes it over calibration text and
    writes it; killed, the same command goes on where it was.

    A type of llama.cpp makes a .gguf file with the scales that its quantizer chooses. The weights are rounded: an
    adapter that shall keep its gain is trained over the file.
    """
    maker = maker_of(settings.grid)
    _check_out(place, settings.grid, "" if maker is None else maker.ending)
    local_folder(model)  # a name that the hub does not know is refused before torch is imported
    if maker is not None:
        made = maker.make(Path(model), Path(place.out), settings, place.overwrite)
        return Found(made, maker.describe(made))

    from sqft_plugins.compress.quantize import quantize_folder

    report = quantize_folder(model, place.out, overwrite=place.overwrite, **settings.keywords())
    return Found(report, _line(report))


def _check_out(place: Place, grid: str, ending: str) -> None:
    """Raises SQFTError, before anything is imported, for an output that cannot be written, or that is no place for the
    grid. ending: of a file; "" for a folder."""
    if ending and not place.out.endswith(ending):
        raise SQFTError(f"--out {place.out}: {grid} is a file, call it {place.out.rstrip('/')}{ending}")
    if not ending and place.out.endswith(".gguf"):
        raise SQFTError(f"--out {place.out}: {grid} is a folder; a file has a type of llama.cpp, such as --grid q4_0")
    (check_output_file if ending else check_output_folder)(place.out, place.overwrite)


def _line(report: Mapping[str, Any]) -> str:
    from sqft_plugins.compress.coverage import describe

    worst = max(report["layers"], key=lambda layer: layer["error"])
    symmetry = "symmetric" if report["symmetric"] else "asymmetric"
    return (
        f"{report['out']}: {report['weights'] / 1e6:.1f} M weights in {report['modules']} layers on "
        f"INT{report['bits']} ({report['method']}, group {report['group_size']}, {symmetry}), "
        f"{report['sparsity']:.2%} pruned, {report['zeros']:.2%} zero, "
        f"worst error {worst['error']:.1%} in {worst['name']}, "
        f"{report['bytes'] / 2**20:.0f} MiB, {report['seconds']:.0f} s, peak {report['peak_memory_mib']} MiB\n"
        f"{describe(report['coverage'])}"
    )
