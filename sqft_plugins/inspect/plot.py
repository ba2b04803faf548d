"""The picture of `sqft inspect --plot`: where the zeros are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint.files import check_output, write_file
from sqft_plugins.errors import DependencyError, SQFTError

PICTURES = (".png", ".svg", ".pdf")


def plot_sparsity(report: Mapping[str, Any], file: str | Path, overwrite: bool = False) -> None:
    """A heat map of the fraction of zeros, blocks × kind of layer, written to `file` (.png, .svg or .pdf).

    Raises SQFTError for an adapter, an unknown format or a file that exists, DependencyError without matplotlib.
    """
    check_plot(file, overwrite)
    if report["kind"] == "adapter":
        raise SQFTError(f"--plot: {report['path']} is an adapter, which has no zeros to show: give a model")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError("--plot needs matplotlib: pip install 'sqft-plugins[plot]'") from error

    cells = {block_and_kind(row["name"]): row["zeros"] for row in report["layers"]}
    blocks = sorted({block for block, _ in cells})
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    values = [[cells.get((block, kind), float("nan")) for block in blocks] for kind in kinds]

    figure = Figure(figsize=(3 + 0.3 * len(blocks), 1.6 + 0.35 * len(kinds)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(kinds)), kinds)
    every = max(1, len(blocks) // 12)
    axes.set_xticks(range(0, len(blocks), every), [str(block) for block in blocks[::every]])
    axes.set_xlabel("block")
    axes.set_title(f"{Path(report['path']).name}: {report['total']['zeros']:.1%} zeros")
    figure.colorbar(image, ax=axes, label="fraction of zeros")

    with write_file(file, overwrite, "--plot") as target:
        figure.savefig(target, dpi=120, format=Path(file).suffix.removeprefix("."))


def check_plot(file: str | Path, overwrite: bool = False) -> None:
    """Raises SQFTError, before any work, for a picture that exists or has an unknown format."""
    if Path(file).suffix not in PICTURES:
        raise SQFTError(f"--plot {file} has no known format: end it with {', '.join(PICTURES)}")
    check_output(file, overwrite, "--plot")


def block_and_kind(name: str) -> tuple[int, str]:
    """ "model.layers.3.mlp.up_proj" → (3, "mlp.up_proj"); "blk.3.ffn_up.weight" → (3, "ffn_up")."""
    match = re.search(r"\.(\d+)\.(.+)$", name.removesuffix(".weight"))
    return (int(match[1]), match[2]) if match else (0, name)
