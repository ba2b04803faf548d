"""What the paper's table consists of: settings, methods, cells and their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paper_data import GROUPS
from pydantic import Field

from sqft_plugins.tune.settings import Settings

SEEDS = {50: [0, 1], 70: [0], 30: [0]}
"""Sparsity in percent → seeds of its tuned cells."""
Seeds = Mapping[int, Sequence[int]]


class PaperSettings(Settings):
    """What every cell shares. maths_steps: equations are longer than answers and sooner learned. questions: of each
    test file, the first ones. maths_questions: likewise; a written answer takes as long as ten options. new_tokens: of
    it. sequences, length: of the built-in calibration text. evaluations, subset, fresh: of the search."""

    steps: int = Field(32, ge=1)
    maths_steps: int = Field(16, ge=1)
    batch_size: int = Field(8, ge=1)
    learning_rate: float = Field(5e-4, gt=0)
    rank: int = 32
    rank_choices: tuple[int, ...] = (32, 24, 16)
    alpha: float = 64
    questions: int = Field(300, ge=1)
    maths_questions: int = Field(100, ge=1)
    new_tokens: int = Field(32, ge=1)
    pruner: str = "wanda"
    quantizer: str = "gptq"
    group_size: int = 32
    sequences: int = 32
    length: int = 128
    evaluations: int = 20
    subset: int = 48
    fresh: int = 128


QUICK = PaperSettings(
    steps=2, maths_steps=2, batch_size=2, questions=4, maths_questions=4, new_tokens=4, sequences=4, length=64,
    evaluations=2, subset=4, fresh=4,
)  # fmt: skip
"""For a look at whether it runs."""


@dataclass(frozen=True)
class Method:
    """base: what it is trained over and tested on, "dense", "float" (pruned) or "int4" (pruned and quantized).
    adapter: settings beside the table's rank and alpha (a masked delta unless they say otherwise); None: not tuned.
    elastic: NLS, tested at the heuristic sub-adapter. merged: the merged folder is what is tested. other: a method
    whose adapter is taken, with ranks that are searched."""

    title: str
    base: str
    adapter: Mapping[str, Any] | None = None
    elastic: bool = False
    merged: bool = False
    other: str | None = None
    result: str = "BF16"


METHODS = {
    "dense": Method("dense", "dense"),
    "pruned": Method("pruned, not tuned", "float"),
    "lora": Method("LoRA", "float", {}, result="BF16 + FP32"),
    "shears": Method("Shears", "float", {"sparse": False}, elastic=True, result="BF16 + FP32"),
    "sqft": Method("SQFT", "int4", {"sparse": False}, elastic=True, result="INT4 + FP32"),
    "sparsepeft": Method("SQFT + SparsePEFT", "float", {}, elastic=True, merged=True),
    "qa": Method(
        "SQFT + QA-SparsePEFT", "float", {"quantization_aware": True}, elastic=True, merged=True, result="INT4"
    ),
    "lora-equal": Method("LoRA, parameters of the heuristic", "float", {}, result="BF16 + FP32"),
    "searched": Method(
        "SQFT + SparsePEFT, searched", "float", {}, elastic=True, merged=True, other="sparsepeft"
    ),
    "int4": Method("pruned and INT4, not tuned", "int4", result="INT4"),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """sparsity in percent, None for the dense model. seed: None where nothing is drawn."""

    method: str
    group: str
    sparsity: int | None
    seed: int | None

    @property
    def key(self) -> str:
        parts = (self.sparsity, self.group, self.method, self.seed)
        return "-".join(str(part) for part in parts if part is not None)


def order(seeds: Seeds) -> list[Cell]:
    """Every cell, the most telling first."""
    tuned = ("sparsepeft", "qa", "lora", "shears", "sqft")
    cells = [Cell("dense", group, None, None) for group in GROUPS]
    for sparsity, all_seeds in seeds.items():
        for group in GROUPS:
            cells.append(Cell("pruned", group, sparsity, None))
            cells += [Cell(method, group, sparsity, all_seeds[0]) for method in tuned]
        cells += [Cell(method, group, sparsity, seed) for seed in all_seeds[1:] for group in GROUPS for method in tuned]
    first = next(iter(seeds))
    cells += [Cell("searched", group, first, seeds[first][0]) for group in GROUPS]
    cells += [Cell("lora-equal", group, first, seed) for seed in seeds[first] for group in GROUPS]
    cells += [Cell("int4", group, first, None) for group in GROUPS]
    return cells
