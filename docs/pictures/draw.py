"""Draws the pictures of docs/concepts.md out of real tensors: python docs/pictures/draw.py

Each picture is computed by the functions that the page explains, so that it cannot show what the code does not do.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

from sqft_plugins import grid
from sqft_plugins.mask import lowest_mask

HERE = Path(__file__).parent
BLUE, ORANGE, GREY, INK = "#2f6fb0", "#d9822b", "#e8e8ea", "#222222"
plt.rcParams.update({"font.size": 10, "font.family": "sans-serif"})


def main() -> None:
    torch.manual_seed(4)
    weight = torch.randn(8, 12)
    mask = lowest_mask(weight.abs(), 0.5)
    sparse = weight.masked_fill(~mask, 0)
    A, B = torch.randn(2, 12), torch.randn(8, 2)

    draw_mask(sparse, mask, 0.5 * (B @ A))
    draw_grid()
    draw_ranks()
    draw_plane(sparse, mask, 0.15 * (B @ A))
    draw_exactness()


def draw_mask(sparse: torch.Tensor, mask: torch.Tensor, delta: torch.Tensor) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.4))
    panels = [
        ("W, pruned", sparse),
        ("mask M: blue = kept", -mask.float()),
        ("W + delta\nplain LoRA: no zero is left", sparse + delta),
        ("W + delta ⊙ M\nSparsePEFT: every zero is left", sparse + delta * mask),
    ]
    for axis, (title, values) in zip(axes, panels, strict=True):
        matrix(axis, title, values)
    save(figure, "mask")


def matrix(axis, title: str, values: torch.Tensor, labels: torch.Tensor | None = None, marked=None) -> None:
    """One weight [out, in] as coloured cells; an exact zero is a white cell with a dot."""
    rows, columns = values.shape
    limit = float(values.abs().max())
    for row in range(rows):
        for column in range(columns):
            value = float(values[row, column])
            colour = "white" if value == 0 else plt.cm.RdBu(0.5 - 0.45 * value / limit)
            edge = ORANGE if marked is not None and bool(marked[row, column]) else "#c8c8cc"
            width = 1.8 if edge == ORANGE else 0.4
            axis.add_patch(Rectangle((column, rows - 1 - row), 0.94, 0.94, facecolor=colour, edgecolor=edge, lw=width))
            text = str(int(labels[row, column])) if labels is not None else "·" if value == 0 else ""
            axis.text(column + 0.47, rows - 0.53 - row, text, ha="center", va="center", fontsize=7, color=INK)
    axis.set(xlim=(-0.2, columns + 0.2), ylim=(-0.2, rows + 0.2), aspect="equal")
    axis.set_axis_off()
    axis.set_title(title, fontsize=10, color=INK)


def draw_grid() -> None:
    """One group of weights, the sixteen places of its grid, and where each weight lands."""
    weights = torch.tensor([[-1.31, -0.92, -0.4, 0.0, 0.0, 0.22, 0.66, 1.02]])
    scale, zero_point = grid.make_scale(weights, group_size=grid.PER_CHANNEL)
    codes = grid.quantize(weights, scale, zero_point)
    landed = grid.dequantize(codes, scale, zero_point)

    figure, axis = plt.subplots(figsize=(10, 2.1))
    for code in range(grid.MAX_CODE + 1):
        place = float(scale) * (code - int(zero_point))
        axis.plot([place, place], [0, 0.16], color=ORANGE if code == int(zero_point) else "#888888", lw=2)
        axis.text(place, -0.24, str(code), ha="center", color=ORANGE if code == int(zero_point) else INK)
    for value, place in zip(weights[0].tolist(), landed[0].tolist(), strict=True):
        axis.annotate("", (place, 0.2), (value, 0.72), arrowprops={"arrowstyle": "->", "color": BLUE})
        axis.plot([value], [0.76], "o", color=BLUE)
    axis.axhline(0, color="#888888", lw=1)
    axis.text(0, 0.98, "two pruned weights: code 8 = the zero point, exactly 0", ha="center", color=ORANGE)
    axis.text(float(scale) * 8.1, 0.7, "weights of one group", color=BLUE, ha="left")
    axis.text(float(scale) * 8.1, -0.24, "codes 0..15", ha="left", color=INK)
    axis.set(ylim=(-0.4, 1.15), xlim=(float(scale) * -8.6, float(scale) * 11))
    axis.set_axis_off()
    save(figure, "grid")


def draw_ranks() -> None:
    """A and B of a super-adapter of rank 32, and the sub-adapters of rank 24 and 16 inside."""
    figure, axis = plt.subplots(figsize=(10, 2.7))
    shades = {32: "#cfe0f1", 24: "#8db8de", 16: BLUE}
    for rank, shade in shades.items():
        size = rank / 32
        axis.add_patch(Rectangle((0, 0), size, 3, facecolor=shade, edgecolor="white"))
        axis.add_patch(Rectangle((2, 3 - size), 4, size, facecolor=shade, edgecolor="white"))
        axis.text(size - 0.04, 0.1, str(rank), ha="right", color=INK, fontsize=8)
        axis.text(5.95, 3 - size + 0.06, f"rank {rank}", ha="right", color=INK, fontsize=8)
    axis.text(0.5, 3.12, "B [out, 32]", ha="center", color=INK)
    axis.text(4, 3.12, "A [32, in]", ha="center", color=INK)
    axis.text(1.5, 1.5, "@", ha="center", va="center", fontsize=16, color=INK)
    axis.text(
        6.4,
        1.5,
        "One set of numbers.\nRank r is the first r columns of B\nand the first r rows of A;\n"
        "the scaling stays alpha / 32.\n\nEach training step draws a rank,\nso every prefix learns to stand alone.",
        va="center",
        color=INK,
    )
    axis.set(xlim=(-0.2, 10), ylim=(-0.2, 3.5))
    axis.set_axis_off()
    save(figure, "elastic-rank")


def draw_plane(sparse: torch.Tensor, mask: torch.Tensor, delta: torch.Tensor) -> None:
    """The codes of an INT4 base, and those of two ranks of an adapter over it."""
    scale, zero_point = grid.make_scale(sparse, group_size=grid.PER_CHANNEL)
    base = grid.quantize(sparse, scale, zero_point)
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.5))
    panels = [("INT4 base", 0.0), ("value plane of rank 16", 1.0), ("value plane of rank 32", 1.9)]
    for axis, (title, strength) in zip(axes, panels, strict=True):
        codes = grid.quantize(sparse + strength * delta * mask, scale, zero_point)
        values = grid.dequantize(codes, scale, zero_point) * mask
        matrix(axis, title, values, labels=codes, marked=codes != base)
    save(figure, "value-plane")


def draw_exactness() -> None:
    """Where the same bits are read."""
    figure, axis = plt.subplots(figsize=(10, 2.2))
    boxes = [
        (0.0, "training", "the merge's own codes\nin the forward pass"),
        (2.5, "sqft merge", "codes, scales,\nzero points, mask"),
        (5.0, "transformers · vLLM", "the same folder,\nread as it is"),
        (7.5, "llama.cpp", "Q4_0: the same steps,\nthe same scales"),
    ]
    for left, title, text in boxes:
        axis.add_patch(FancyBboxPatch((left, 0), 2, 1.3, boxstyle="round,pad=0.06", facecolor=GREY, edgecolor=BLUE))
        axis.text(left + 1, 1.0, title, ha="center", weight="bold", color=INK)
        axis.text(left + 1, 0.42, text, ha="center", va="center", color=INK, fontsize=9)
        if left:
            axis.annotate("", (left - 0.1, 0.65), (left - 0.4, 0.65), arrowprops={"arrowstyle": "->", "color": INK})
    axis.text(
        4.75,
        -0.35,
        "scale · (code − zero_point): 8 + 4 bits, exact in float32; compared tensor by tensor at every arrow",
        ha="center",
        color=INK,
    )
    axis.set(xlim=(-0.2, 9.8), ylim=(-0.55, 1.5))
    axis.set_axis_off()
    save(figure, "exactness")


def save(figure, name: str) -> None:
    figure.savefig(HERE / f"{name}.png", dpi=110, bbox_inches="tight", facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    main()
