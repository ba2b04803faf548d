"""Gain kept: how much of what a LoRA learns is left when the model is on a grid, on Gemma-3-270M.

    python benchmarks/gain_kept.py --data-dir DIR [--grids INT4 Q4_0 ...] [--seeds 0 1] [--quick] [--json FILE]

    gain kept = (untuned - on the grid) / (untuned - LoRA)        in nats of the right answer, over both tasks

Untuned and LoRA are the float model before and after it is tuned (rank 32 on all seven projections, 64 steps of 8, on
OpenBookQA and MAWPS together), and answers are those of training questions that were held out. The ways to a grid:

    afterwards    the peer: LoRA, merged, then GPTQ (INT grids), or llama.cpp's quantizer with an importance matrix
    settled       LoRA's A and B, settled on the grid of the untuned model, as `sqft train --grid` (or --base) does
    rounded       the same, each weight rounded to its nearest code
    codes alone   trained over the untuned model on its grid, without the float model, and settled
    round 1, 2    `afterwards`, tuned a little more over its codes (24 steps), settled and merged; and once more
    LoRA longer   float: as many steps as LoRA and both rounds

All are calibrated on the same text: 32 x 128 tokens of the training rows (--sequences); settling has its 32 always.
Errors are standard deviations over 1,000 bootstrap draws of the questions; `ratios` has median, min and max over the
seeds. Models on the way are in --work, the scores too, so that a killed run goes on. All is float32. A row of one seed
takes 3 to 6 minutes on one core without AMX.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars: our progress is lines
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from common import command, environment, report
from gain_ways import FULL, GRIDS, QUICK, WAYS, Ways
from paper_data import examples
from random_model import write_model

from sqft_plugins.demo.base import prepare_base
from sqft_plugins.demo.task import WordProblems
from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import say
from sqft_plugins.search.paired import paired_difference
from sqft_plugins.tune.examples import Example
from sqft_plugins.variables import DATA_DIR

TASKS = ("openbookqa", "mawps")
GOALS = {
    **{(grid, "settled"): 0.95 for grid in ("Q4_K_M", "Q4_0")},
    **{(grid, "codes alone"): 0.85 for grid in ("Q4_K_M", "Q4_0")},
    **{(grid, f"round {number}"): 0.85 for grid in ("INT3", "Q3_K_M") for number in (1, 2)},
}
"""Of the gain kept; of what is lost afterwards, every round is to keep half."""
DRAWS = 1000


def main() -> None:
    parser = command(__doc__, "a tiny random model, 2 steps, made-up questions: does it run")
    parser.add_argument("--grids", nargs="+", choices=list(GRIDS), help="Default: four, two if quick")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--questions", type=int, default=64, help="Held-out questions of each task")
    parser.add_argument("--sequences", type=int, help="Of calibration, 128 tokens each. Default: 32")
    parser.add_argument("--data-dir", default=os.environ.get(DATA_DIR), help=f"As in sqft eval; or {DATA_DIR}")
    parser.add_argument("--model", type=Path, help="The float model. Default: Gemma-3-270M from its PyPI package")
    parser.add_argument("--work", type=Path, default=Path("gain-out"), help="Models on the way, and scores")
    parser.add_argument("--keep", action="store_true", help="Leave the tuned models in --work")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            result = run(options, Path(scratch))
    except SQFTError as error:
        raise SystemExit(f"gain_kept.py: {error}") from error
    show(result["rows"])
    report(result, options.json)


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    settings = QUICK if options.quick else FULL
    if options.sequences is not None:
        settings = replace(settings, sequences=options.sequences)
    tasks, training = data(options)
    if options.quick:
        model, work = scratch / "model", scratch / "work"
        write_model(model, 2, sparse=False, hidden_size=256, intermediate_size=512, num_attention_heads=4)
    else:
        work = options.work
        model = options.model or work / "float"
        if not model.exists():
            prepare_base(model)

    rows: list[dict[str, Any]] = []
    grids = options.grids or (["INT4", "INT3", "INT2", "Q4_0"] if not options.quick else ["INT3", "Q4_0"])
    for seed in options.seeds:
        ways = Ways(model, work, seed, tasks, training, settings)
        before, after = ways.scores("untuned"), ways.scores("LoRA")
        for task in tasks:
            gain = paired_difference(before[task], after[task])
            say(f"seed {seed}, {task}: LoRA gains {gain.value:.2f} ± {gain.stderr:.2f} nats an answer")
        if "round 2" in options.ways:
            rows.append(row("float", "LoRA longer", seed, before, after, ways.scores("LoRA longer")))
        for grid in grids:
            for way in options.ways:
                found = row(grid, way, seed, before, after, ways.scores(way, grid))
                rows.append({**found, **ways.about(way, grid)})
                say(f"seed {seed}, {grid}, {way}: {found['kept']:.3f} ± {found['stderr']:.3f}")
            if not options.keep:
                ways.forget(grid)
        if not options.keep:
            ways.forget("float")
    return {"environment": environment(), "settings": settings.__dict__, "rows": rows, "ratios": ratios(rows)}


def data(options: argparse.Namespace) -> tuple[dict[str, list[Example]], list[Example]]:
    """(task → held-out questions, training examples)."""
    if options.quick:
        made = WordProblems().training(24)
        return {"word-problems": made[:8]}, made[8:]
    if options.data_dir is None:
        raise SQFTError(f"no data: name the folder of {' and '.join(TASKS)} by --data-dir or {DATA_DIR}")
    held_out = {task: examples((task,), options.data_dir)[1][: options.questions] for task in TASKS}
    return held_out, examples(TASKS, options.data_dir)[0]


Scores = dict[str, list[float]]
"""Task → nats of each right answer."""


def row(grid: str, way: str, seed: int, before: Scores, after: Scores, found: Scores) -> dict[str, Any]:
    """kept: over the questions of all tasks together; stderr: by bootstrap over the questions of each."""
    import torch

    generator = torch.Generator().manual_seed(0)
    by_task: dict[str, dict[str, float]] = {}
    saved, gained = torch.zeros(DRAWS + 1), torch.zeros(DRAWS + 1)  # nats a question; the first as it is
    for task in after:
        untuned, tuned, own = (torch.tensor(scores[task]) for scores in (before, after, found))
        take = torch.cat(
            [torch.arange(len(own))[None], torch.randint(len(own), (DRAWS, len(own)), generator=generator)]
        )
        left, whole = (untuned - own)[take].mean(1), (untuned - tuned)[take].mean(1)
        saved, gained = saved + left, gained + whole
        by_task[task] = {
            "kept": float(left[0] / whole[0]),
            "stderr": float((left / whole)[1:].std()),
            "nats": float(own.mean()),
        }
    kept = saved / gained
    return {
        "grid": grid,
        "way": way,
        "seed": seed,
        "kept": float(kept[0]),
        "stderr": float(kept[1:].std()),
        "tasks": by_task,
    }


def ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Gain kept over the seeds; beside it what is kept of what `afterwards` loses."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in rows:
        found.setdefault((one["grid"], one["way"]), []).append(one["kept"])
    result = {}
    for (grid, way), kept in found.items():
        result[f"{grid}, {way}: gain kept"] = spread(kept, GOALS.get((grid, way)))
        peer = found.get((grid, "afterwards"))
        if peer and max(peer) < 1 and way != "afterwards":
            saved = [(own - other) / (1 - other) for own, other in zip(kept, peer, strict=True)]
            goal = 0.5 if way.startswith("round ") else 0.0  # a settled file is to be no worse than its peer
            result[f"{grid}, {way}: of what is lost afterwards, kept"] = spread(saved, goal)
    return result


def spread(values: list[float], goal: float | None) -> dict[str, Any]:
    ordered = sorted(values)
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return {"median": middle, "min": ordered[0], "max": ordered[-1], "goal": goal}


def show(rows: list[dict[str, Any]]) -> None:
    tasks = list(rows[0]["tasks"])
    print("| grid | way | seed | gain kept | " + " | ".join(f"{task}: kept, nats" for task in tasks) + " |")
    print("|---" * (4 + len(tasks)) + "|")
    for one in rows:
        cells = [f"{p['kept']:.2f} ± {p['stderr']:.2f}, {p['nats']:.2f}" for p in one["tasks"].values()]
        gain = f"{one['kept']:.2f} ± {one['stderr']:.2f}"
        print(f"| {one['grid']} | {one['way']} | {one['seed']} | {gain} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    sys.exit(main())
