"""Merge and tune again: three rounds on three tasks in turn, at 50 % sparsity. Is it stable?

    python benchmarks/continued.py --data-dir DIR [--methods sparsepeft qa] [--quick]
    python benchmarks/continued.py --table          # docs/results.md

SparsePEFT: each round's adapter is merged into the sparse float model, and the next one is trained over the result.
QA-SparsePEFT: the first round is trained over the sparse float base through the grid of its INT4 folder; after its
merge there are only codes, so the next rounds are trained over the merged INT4 folder itself. After each round:
accuracy on all three tasks, pruned weights that are still exactly 0, the codes, and whether scales and zero points are
those of the start. Every round is a JSON file; killed, the same command goes on. Bases and settings are those of
paper_table.py.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from common import command
from merge import measured
from paper_cells import Bench, as_text, circumstances, once
from paper_data import METRICS, examples
from paper_methods import QUICK
from paper_report import NAMES, put
from paper_table import PAGE, ROOT, add_options, bench_of, read

from sqft_plugins.checkpoint import ModelFolder, write_file
from sqft_plugins.errors import SQFTError
from sqft_plugins.evaluate.report import open_candidate
from sqft_plugins.progress import say
from sqft_plugins.tune import AdapterSettings, TrainSettings
from sqft_plugins.tune.merge import merge_folder
from sqft_plugins.tune.train import train_adapter
from sqft_plugins.variables import DATA_DIR

TASKS = ("arc-easy", "openbookqa", "mawps")
SPARSITY = 50
TITLES = {"sparsepeft": "SparsePEFT", "qa": "QA-SparsePEFT"}


def main() -> None:
    parser = command(__doc__, "a tiny random model, 2 steps and 4 questions: does it run")
    add_options(parser, ROOT / "docs/results/continued")
    parser.add_argument("--methods", nargs="+", choices=list(TITLES), default=list(TITLES))
    options = parser.parse_args()
    try:
        run(options)
    except SQFTError as error:
        raise SystemExit(f"continued.py: {error}") from error


def run(options: Any) -> None:
    if options.table:
        return put(PAGE, markdown(read(options.out)), "continued")
    if options.data_dir is None:
        raise SQFTError(f"no data: name the folder of arc_easy, openbookqa and mawps by --data-dir or {DATA_DIR}")
    if options.quick:
        from pruning import tiny_model

        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            model, out = tiny_model(at / "model"), at / "rounds"
            bench = Bench(out, at / "work", options.data_dir, QUICK, model)
            for method in options.methods:
                rounds(bench, method)
            return finish(out, options.json)
    bench = bench_of(options)
    for method in options.methods:
        rounds(bench, method)
    finish(options.out, options.json)


def finish(out: Path, file: str | None) -> None:
    results = read(out)
    print(markdown(results))
    if file:
        Path(file).write_text(json.dumps(results, indent=1) + "\n")


def rounds(bench: Bench, method: str) -> None:
    """Every round of a method that is not there yet, the untuned start included."""
    pruned, _ = bench.base("float", SPARSITY)
    int4 = bench.base("int4", SPARSITY)[0] if method == "qa" else None
    model = int4 or pruned
    tell(bench, method, 0, None, model, pruned, int4, {})
    for number, task in enumerate(TASKS, 1):
        before = pruned if number == 1 else model  # after the first merge of QA-SparsePEFT there are only codes
        place = bench.work / "continued" / f"{method}-{number}"
        adapter, training = once(place.with_name(f"{place.name}-adapter"), trainer(bench, method, task, before, int4))
        model, merge = once(place, merger(before, adapter))
        tell(bench, method, number, task, model, pruned, int4, {"training": training, "merge": merge})


def trainer(bench: Bench, method: str, task: str, base: Path, int4: Path | None) -> Any:
    s = bench.settings
    adapter: dict[str, Any] = {"rank": s.rank, "alpha": s.alpha, "rank_choices": list(s.rank_choices)}
    if int4 is not None:
        adapter["quantization_aware"] = True
        if ModelFolder(base).grid is None:
            adapter["grid"] = str(int4)
    steps = s.maths_steps if task == "mawps" else s.steps
    training = {"steps": steps, "batch_size": s.batch_size, "learning_rate": s.learning_rate}
    rows = examples((task,), bench.data_dir)[0]
    return lambda path: train_adapter(base, path, rows, AdapterSettings.make(adapter), TrainSettings.make(training))


def merger(base: Path, adapter: Path) -> Any:
    return lambda path: merge_folder(base, adapter, path, "heuristic")


def tell(
    bench: Bench, method: str, number: int, task: str | None, model: Path, pruned: Path, int4: Path | None,
    made: Mapping[str, Any],
) -> None:  # fmt: skip
    """Scores the model after a round and writes the round's file."""
    target = bench.out / f"{method}-{number}.json"
    if target.is_file():
        return
    start = time.monotonic()
    say(f"{method}, round {number}", "bold")
    result = {
        "method": method,
        "round": number,
        "trained_on": task,
        **made,
        **measured(pruned, model),
        "grid_unchanged": None if int4 is None else same_grid(int4, model),
        **bench.scores(open_candidate(model, cache=False), TASKS, f"continued-{method}"),
        "settings": bench.settings.model_dump(),
        **circumstances(),
    }
    result["seconds"] = round(time.monotonic() - start, 1)
    with write_file(target, overwrite=True) as file:
        file.write_text(as_text(result))


def same_grid(one: Path, other: Path) -> bool:
    """Whether two INT4 folders have the same scales and zero points, bit for bit."""
    a, b = ModelFolder(one), ModelFolder(other)
    return a.int4.modules == b.int4.modules and all(
        torch.equal(a.quantized(module).scale, b.quantized(module).scale)
        and torch.equal(a.quantized(module).zero_point, b.quantized(module).zero_point)
        for module in a.int4.modules
    )


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    heads = ["", "tuned on", *NAMES.values(), "zeros kept", "codes", "kept codes changed", "grid as before"]
    lines = [heads, ["---"] * len(heads)]
    for row in sorted(results, key=lambda row: (list(TITLES).index(row["method"]), row["round"])):
        scores = [
            (row["scores"][task][METRICS[task]], row["scores"][task][f"{METRICS[task]}_stderr"]) for task in NAMES
        ]
        changed, grid = row.get("merge", {}).get("codes_changed"), row["grid_unchanged"]
        lines.append([
            f"{TITLES[row['method']]}, {'start' if row['round'] == 0 else 'round ' + str(row['round'])}",
            NAMES.get(row["trained_on"] or "", ""),
            *(f"{100 * value:.1f} ± {100 * error:.1f}" for value, error in scores),
            f"{row['zeros_kept']:.2%}",
            "" if row["codes"] is None else "{}..{}".format(*row["codes"]),
            "" if changed is None else f"{changed:.2%}",
            {None: "", True: "yes", False: "**no**"}[grid],
        ])  # fmt: skip
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
    wanted = len(TITLES) * (len(TASKS) + 1)
    command = "`python benchmarks/continued.py --data-dir DATA`"
    return (
        text
        if len(results) == wanted
        else f"{text}\nMissing: {wanted - len(results)} of {wanted} rows; {command} fills them.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
