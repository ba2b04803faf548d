"""The demo's report: report.json, report.md and one picture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint.files import write_file

WIDE = 20
"""Perplexities further apart than this factor are drawn on a logarithmic scale."""
COLUMNS = ["stage", "accuracy", "perplexity", "zeros kept", "bits/weight", "MB", "seconds"]
SOURCE = "`sqft demo --compare-lora` shows it"
"""Where the comparison with plain LoRA is."""
MEANING = {
    "dense": "the model as it came",
    "pruned": "Wanda",
    "tuned": "SparsePEFT + NLS, the heuristic sub-adapter, not merged",
    "merged": "that sub-adapter merged in",
    "lora_merged": "a plain LoRA of the super-adapter's rank, merged: what SQFT is for",
    "int4": "the merged model on the INT4 grid (GPTQ with the mask kept, compressed-tensors), in transformers",
    "gguf": "the same codes as GGUF, in llama.cpp",
    "file": "the GGUF file as it comes from its package, in llama.cpp",
    "file_tuned": "that file, tuned on its own grids and merged: other codes, all else as it was",
}


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table's cells, a row a stage."""
    return [
        [
            stage["name"],
            f"{stage['accuracy']:.1%} ± {stage['accuracy_stderr']:.1%}",
            f"{stage['perplexity']:.1f}",
            f"{stage['zeros_kept']:.2%}",
            f"{stage['bits_per_weight']:.2f}",
            f"{stage['bytes'] / 1e6:.0f}",
            f"{stage['seconds']:.0f}",
        ]
        for stage in report["stages"]
    ]


def why_not_learned(report: Mapping[str, Any]) -> str | None:
    """What to say where the tuned model's accuracy is not above the pruned one's by twice the standard error of their
    difference; None where it is, or where one of the two is not scored yet. The questions are the same ones, so that
    the error of independent samples, which is taken here, is the larger one."""
    scored = {stage["name"]: stage for stage in report["stages"]}
    if not {"pruned", "tuned"} <= set(scored):
        return None

    pruned, tuned = scored["pruned"], scored["tuned"]
    error = math.hypot(pruned["accuracy_stderr"], tuned["accuracy_stderr"])
    if tuned["accuracy"] - pruned["accuracy"] > 2 * error:
        return None
    steps = report["settings"]["steps"]
    return (
        f"Tuned ({tuned['accuracy']:.1%}) is not above pruned ({pruned['accuracy']:.1%}) by twice the standard error "
        f"of the difference ({error:.1%}): {steps} steps did not measurably teach the task; --steps {2 * steps} may."
    )


def write_report(out: Path, report: Mapping[str, Any]) -> None:
    """Writes the three files, each whole or not at all."""
    with write_file(out / "report.json", overwrite=True) as file:
        file.write_text(json.dumps(report, indent=2, default=str) + "\n")
    with write_file(out / "report.md", overwrite=True) as file:
        file.write_text(markdown(report))
    with write_file(out / "report.png", overwrite=True) as file:
        plot(report["stages"], file)


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    table = [COLUMNS, ["---"] * len(COLUMNS), *rows(report)]
    lines = ["# sqft demo", "", "![accuracy, perplexity and zeros of every stage](report.png)", ""]
    lines += ["| " + " | ".join(row) + " |" for row in table]
    if warning := why_not_learned(report):
        lines += ["", f"**{warning}**"]
    lines += ["", *(f"- **{stage['name']}**: {MEANING[stage['name']]}" for stage in report["stages"]), ""]

    settings = ", ".join(f"{key} {value}" for key, value in report["settings"].items() if value is not None)
    lines += [
        f"Task: {report['task']}, held-out questions, greedy. Perplexity: held-out text of Python's manual.",
        "zeros kept: of the weights that pruning removed, the fraction that is exactly 0 now. bits/weight: on disk, of "
        "the pruned linear layers, with scales. seconds: making and scoring.",
        "",
    ]
    if "merge" in report:
        lines += [_merges(report), ""]
    lines += [f"Settings: {settings}.", ""]
    return "\n".join(lines)


def _merges(report: Mapping[str, Any]) -> str:
    merge, lora = report["merge"], report.get("lora_merge")
    plain = f"the plain LoRA merge lost {lora['zeros_lost']:,}" if lora else f"a plain LoRA merge keeps none ({SOURCE})"
    return (
        f"Merging changed no logit by more than {merge['max_logit_difference']:.1e} (float32) and lost "
        f"{merge['zeros_lost']:,} zeros; {plain}."
    )


def plot(stages: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Three bar charts over the stages: accuracy with its standard error, perplexity, zeros kept."""
    from matplotlib.figure import Figure

    names = [stage["name"].replace("_", "\n") for stage in stages]
    colors = ["#c44e52" if stage["name"] == "lora_merged" else "#4c72b0" for stage in stages]
    charts: list[tuple[str, list[float], list[float] | None]] = [
        (
            "accuracy on held-out questions, %",
            [100 * s["accuracy"] for s in stages],
            [100 * s["accuracy_stderr"] for s in stages],
        ),
        ("perplexity on other text", [s["perplexity"] for s in stages], None),
        ("pruned weights that are exactly 0, %", [100 * s["zeros_kept"] for s in stages], None),
    ]
    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (title, values, errors) in zip(axes, charts, strict=True):
        bars = axis.bar(names, values, yerr=errors, color=colors, capsize=3)
        axis.bar_label(bars, fmt="%.4g", padding=3, fontsize=8)
        axis.set_title(title, fontsize=11)
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(y=0.15)
    perplexities = charts[1][1]
    if max(perplexities) > WIDE * min(perplexities):  # a forgotten language would leave the others no height
        axes[1].set_yscale("log")
        axes[1].set_title("perplexity on other text (log scale)", fontsize=11)
    figure.savefig(file, dpi=110, format="png")
