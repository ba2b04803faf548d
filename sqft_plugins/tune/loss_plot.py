"""loss.png beside an adapter: the loss of every step, and that of the held-out examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqft_plugins.progress import say


def plot_losses(losses: Sequence[float], file: Path, evaluations: Sequence[Mapping[str, Any]] = ()) -> None:
    """The loss of every step as a picture, smoothed, with that of the held-out examples; without matplotlib a note
    says how to get it."""
    if find_spec("matplotlib") is None:
        say("no loss.png: run pip install 'sqft-plugins[plot]'")
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axis = figure.subplots()
    steps = range(1, len(losses) + 1)
    axis.plot(steps, losses, color="#4c72b0", alpha=0.35, linewidth=1, label="a step's batch")
    axis.plot(steps, smoothed(losses), color="#4c72b0", label="smoothed")
    for name, label, marker in (("loss", "held out", "o-"), ("loss_at_max_rank", "held out, largest rank", "s--")):
        points = [(row["step"], row[name]) for row in evaluations if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), marker, color="#c44e52", markersize=4, linewidth=1, label=label)
    axis.set(xlabel="step", ylabel="loss at the learned tokens")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and those around it: a window of about a tenth of them, cut at the ends."""
    half = max(1, len(values) // 20)
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]
