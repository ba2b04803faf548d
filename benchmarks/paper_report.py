"""The paper's table out of its cells: Markdown, a picture, and paired differences with their standard errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paper_data import GROUPS, METRICS
from paper_methods import METHODS, Seeds, order

from sqft_plugins.checkpoint import write_file
from sqft_plugins.errors import SQFTError
from sqft_plugins.search.paired import Mean, mean, paired_difference

Results = Sequence[Mapping[str, Any]]
TABLE = ["dense", "pruned", "lora", "shears", "sqft", "sparsepeft", "qa"]
MORE = ["int4", "lora-equal", "searched"]
"""Rows below it."""
NAMES = {"arc-easy": "ARC-Easy", "openbookqa": "OpenBookQA", "mawps": "MAWPS"}
COLUMNS = ["mergeable", "final precision", "zeros kept", "bits/weight", "MB", "training, CPU-s", "peak, GiB"]
PAIRS = [
    ("sparsepeft", "pruned", "does tuning help"),
    ("dense", "sparsepeft", "what pruning still costs"),
    ("shears", "lora-equal", "NLS against LoRA of as many parameters"),
    ("shears", "lora", "NLS against LoRA of rank 32"),
    ("sparsepeft", "lora", "SparsePEFT against LoRA"),
    ("sparsepeft", "shears", "what the mask costs"),
    ("qa", "sqft", "merged INT4 against INT4 with an adapter"),
    ("sparsepeft", "qa", "what INT4 costs"),
    ("searched", "sparsepeft", "searched ranks against the heuristic"),
]
COLORS = ["#888888", "#4c72b0", "#55a868", "#c44e52", "#8172b3", "#ccb974", "#64b5cd"]


def find(results: Results, method: str, group: str, sparsity: int | None) -> list[Mapping[str, Any]]:
    """The cells of a method, one a seed."""
    wanted = None if method == "dense" else sparsity
    cells = [c for c in results if (c["method"], c["group"], c["sparsity"]) == (method, group, wanted)]
    return sorted(cells, key=lambda cell: cell["seed"] or 0)


def by_question(cells: Sequence[Mapping[str, Any]], task: str, what: str = "items") -> list[float]:
    """Of each question, the mean over the cells (seeds): 1 where right, or the gold answer's log-likelihood."""
    rows = [[float(value) for value in cell["scores"][task][what]] for cell in cells]
    return [sum(values) / len(values) for values in zip(*rows, strict=True)]


def percent(value: Mean) -> str:
    return f"{100 * value.value:.1f} ± {100 * value.stderr:.1f}"


def difference(
    results: Results, one: str, other: str, tasks: Sequence[str], sparsity: int, what: str = "items"
) -> Mean | None:
    """one - other on the same questions of all `tasks`, over the seeds that both have; None where there is none."""
    group = next(name for name, group in GROUPS.items() if tasks[0] in group.tasks)
    a, b = find(results, one, group, sparsity), find(results, other, group, sparsity)
    seeds = {cell["seed"] for cell in a} & {cell["seed"] for cell in b}
    if seeds:  # else one of the two is not tuned and has no seed
        a, b = ([cell for cell in cells if cell["seed"] in seeds] for cells in (a, b))
    if not a or not b:
        return None
    first, second = ([value for task in tasks for value in by_question(cells, task, what)] for cells in (a, b))
    return paired_difference(first, second)


# --- Markdown ---


def markdown(results: Results, seeds: Seeds) -> str:
    """A table a sparsity, the paired differences, and which cells are missing."""
    parts = []
    for sparsity, drawn in seeds.items():
        parts.append(f"### {sparsity} % sparsity, {len(drawn)} seed{'s' * (len(drawn) > 1)}")
        parts.append(table(results, sparsity, seeds))
    for sparsity in [sparsity for sparsity in seeds if any(cell["sparsity"] == sparsity for cell in results)]:
        parts += [f"### Differences at {sparsity} %", differences(results, sparsity)]
    there = {(cell["method"], cell["group"], cell["sparsity"], cell["seed"]) for cell in results}
    missing = [cell.key for cell in order(seeds) if (cell.method, cell.group, cell.sparsity, cell.seed) not in there]
    if missing:
        parts.append(f"Missing, {len(missing)} of {len(order(seeds))} cells: {', '.join(missing)}.")
        parts.append("`python benchmarks/paper_table.py --data-dir DATA` fills them.")
    return "\n\n".join(parts) + "\n"


def table(results: Results, sparsity: int, seeds: Seeds) -> str:
    lines = [["method", *NAMES.values(), *COLUMNS]]
    lines.append(["---"] * len(lines[0]))
    planned = order(seeds)
    for method in [*TABLE, *MORE]:
        cells = {group: find(results, method, group, sparsity) for group in GROUPS}
        wanted = sum(cell.method == method and cell.sparsity == sparsity for cell in planned) // len(GROUPS)
        if wanted or method == "dense":
            lines.append(row(method, cells, wanted))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def row(method: str, cells: Mapping[str, Sequence[Mapping[str, Any]]], wanted: int) -> list[str]:
    """cells: group → one a seed, of `wanted`."""
    scores = [score(cells[name], task, wanted) for name, group in GROUPS.items() for task in group.tasks]
    every = [cell for found in cells.values() for cell in found]
    if not every:
        return [METHODS[method].title, *scores, *[""] * len(COLUMNS)]
    first, tuned = every[0], METHODS[method].adapter is not None
    own = tuned and METHODS[method].other is None  # searched ranks are of an adapter that another row trained
    zeros = "" if first["zeros_kept"] is None else f"{first['zeros_kept']:.0%}"
    seconds = [cpu_seconds(found) for found in cells.values() if own]
    return [
        METHODS[method].title,
        *scores,
        ("yes" if METHODS[method].merged else "no") if tuned else "",
        METHODS[method].result,
        zeros if METHODS[method].merged or not tuned else f"({zeros})",
        f"{first['bits_per_weight']:.2f}",
        f"{first['bytes'] / 1e6:.0f}",
        " / ".join(seconds),
        f"{max(cell['training']['peak_memory_mib'] for cell in every) / 1024:.1f}" if own else "",
    ]


def score(cells: Sequence[Mapping[str, Any]], task: str, wanted: int) -> str:
    if not cells:
        return "missing"
    found = percent(mean(by_question(cells, task)))
    return found if len(cells) >= wanted else f"{found} ({len(cells)} of {wanted} seeds)"


def cpu_seconds(cells: Sequence[Mapping[str, Any]]) -> str:
    """Of the training, the mean over the seeds."""
    known = [cell["training"]["cpu_seconds"] for cell in cells if "cpu_seconds" in cell["training"]]
    return f"{sum(known) / len(known):.0f}" if known else "missing"


def differences(results: Results, sparsity: int) -> str:
    """Points of accuracy, and nats of the gold option's log-likelihood (up is better), on the same questions; in bold
    what is more than noise (two standard errors)."""
    commonsense, maths = (group.tasks for group in GROUPS.values())
    heads = [*(NAMES[task] for task in commonsense), "both", "both, nats", *(NAMES[task] for task in maths)]
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    for one, other, why in PAIRS:
        places = [(task,) for task in commonsense] + [commonsense]
        found = [told(difference(results, one, other, tasks, sparsity), 100) for tasks in places]
        found.append(told(difference(results, one, other, commonsense, sparsity, "gold_nll"), -1, 2))
        found.append(told(difference(results, one, other, maths, sparsity), 100))
        if any(found):
            lines.append([f"{METHODS[one].title} − {METHODS[other].title}: {why}", *found])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def told(value: Mean | None, scale: float, digits: int = 1) -> str:
    if value is None:
        return ""
    text = f"{scale * value.value:+.{digits}f} ± {abs(scale) * value.stderr:.{digits}f}"
    return text if value.is_noise else f"**{text}**"


def write_page(page: Path, results: Results, seeds: Seeds, image: Path) -> None:
    """Puts the tables between the page's marks `<!-- table -->` and `<!-- /table -->`, and draws the picture."""
    put(page, markdown(results, seeds), "table")
    image.parent.mkdir(parents=True, exist_ok=True)
    picture(results, image)


def put(page: Path, text: str, mark: str) -> None:
    """Replaces what stands between the two marks. Raises SQFTError for a page without them."""
    before, start, rest = page.read_text().partition(f"<!-- {mark} -->")
    _, end, after = rest.partition(f"<!-- /{mark} -->")
    if not start or not end:
        raise SQFTError(f"{page} has no marks <!-- {mark} --> and <!-- /{mark} -->: put them where the table goes")
    with write_file(page, overwrite=True) as file:
        file.write_text(f"{before}{start}\n{text.strip()}\n{end}{after}")


# --- picture ---


def picture(results: Results, file: Path) -> None:
    """Accuracy over sparsity, a panel a task; bars are standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sparsities = sorted({cell["sparsity"] for cell in results if cell["sparsity"] is not None})
    figure, axes = plt.subplots(1, len(NAMES), figsize=(14, 4.4), layout="constrained")
    for axis, (task, name) in zip(axes, NAMES.items(), strict=True):
        group = next(key for key, value in GROUPS.items() if task in value.tasks)
        for place, (method, color) in enumerate(zip(TABLE, COLORS, strict=True)):
            points = [(s, find(results, method, group, s)) for s in sparsities]
            values = [(s, mean(by_question(cells, task))) for s, cells in points if cells]
            if not values:
                continue
            if method == "dense":
                axis.axhline(100 * values[0][1].value, color=color, linestyle=":", label="dense")
                continue
            axis.errorbar(
                [sparsities.index(s) + 0.11 * (place - 3.5) for s, _ in values],
                [100 * value.value for _, value in values],
                [100 * value.stderr for _, value in values],
                fmt="o", color=color, capsize=2, label=METHODS[method].title,
            )  # fmt: skip
        axis.set_xticks(range(len(sparsities)), [f"{s} %" for s in sparsities])
        axis.set(title=f"{name}, {METRICS[task]}, %", xlabel="sparsity")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    with write_file(file, overwrite=True) as target:
        figure.savefig(target, dpi=100, format="png")
    plt.close(figure)
