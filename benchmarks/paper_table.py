"""The SQFT paper's table at our scale: Gemma-3-270M, seven methods, three sparsities, two task groups.

    python benchmarks/paper_table.py --data-dir DIR [--cells PATTERN ...] [--quick]     # fills what is missing
    python benchmarks/paper_table.py --table                                            # docs/results.md, the picture
    python benchmarks/paper_table.py --list

Methods: dense, pruned without tuning, LoRA, Shears, SQFT, SQFT + SparsePEFT, SQFT + QA-SparsePEFT; sparsity 50, 70 and
30 %; commonsense (ARC-Easy and OpenBookQA) and maths (MAWPS). Same data, steps, seeds and learning rate for each. Then
LoRA with as many parameters as the heuristic sub-adapter has, and the heuristic against searched ranks.

Every cell is a JSON file in --out. Killed, the same command goes on; two of them may run side by side. --cells takes
patterns of cells' names ('50-*', '*-qa-*'). The data are those of `sqft eval --data-dir`, with train rows. A cell takes
3 to 5 minutes on one core without AMX, all of them about three hours; --work holds models and adapters (4 GB).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' bars: our progress is lines
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from common import command
from paper_cells import Bench, circumstances
from paper_methods import QUICK, SEEDS, Cell, PaperSettings, order
from paper_report import markdown, picture, write_page

from sqft_plugins.errors import SQFTError
from sqft_plugins.progress import say
from sqft_plugins.variables import DATA_DIR

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs/results.md", ROOT / "docs/results/paper.png"


def main() -> None:
    parser = command(__doc__, "a tiny random model, 50 %, 2 steps and 4 questions: does it run")
    add_options(parser, ROOT / "docs/results/paper")
    parser.add_argument("--cells", nargs="+", default=["*"], metavar="PATTERN")
    parser.add_argument("--list", action="store_true", help="Print the names of the cells and which are there")
    options = parser.parse_args()
    try:
        run(options)
    except SQFTError as error:
        raise SystemExit(f"paper_table.py: {error}") from error


def add_options(parser: argparse.ArgumentParser, out: Path) -> None:
    """Those of the benchmarks that fill docs/results.md out of JSON files in `out`."""
    parser.add_argument("--out", type=Path, default=out, help="Where the results' JSON files are")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache/paper", help="Models and adapters on the way")
    parser.add_argument("--model", type=Path, help="The dense model. Default: Gemma-3-270M from its PyPI package")
    parser.add_argument("--data-dir", default=os.environ.get(DATA_DIR), help=f"As in sqft eval; or {DATA_DIR}")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="Other settings, to another --out")
    parser.add_argument("--table", action="store_true", help="Only write what docs/results.md shows of --out")


def bench_of(options: Any) -> Bench:
    given = dict(pair.partition("=")[::2] for pair in options.set)
    settings = PaperSettings.make({name: json.loads(value) for name, value in given.items()})
    return Bench(options.out, options.work.resolve(), options.data_dir, settings, options.model)


def run(options: Any) -> None:
    cells = [cell for cell in order(SEEDS) if any(fnmatch.fnmatch(cell.key, pattern) for pattern in options.cells)]
    if not cells:
        raise SQFTError(f"--cells {' '.join(options.cells)} names no cell: --list prints them")
    if options.list:
        for cell in cells:
            print(f"{cell.key:32} {'there' if (options.out / f'{cell.key}.json').is_file() else 'missing'}")
        return
    if options.table:
        results = read(options.out)
        write_page(PAGE, results, SEEDS, PICTURE)
        return write_json(options.json, results)
    if options.data_dir is None:
        raise SQFTError(
            f"no data: name the folder that holds arc_easy, openbookqa and mawps by --data-dir or {DATA_DIR}"
        )
    if options.quick:
        return quick(options)
    bench = bench_of(options)
    check_settings(bench)
    preload()
    failed = [cell.key for cell in cells if not bench.file(cell).is_file() and not in_own_process(bench, cell)]
    write_json(options.json, read(options.out))
    if failed:
        raise SystemExit(f"not done: {', '.join(failed)}; the same command tries them again")


def preload() -> None:
    """Imports what every cell needs, once for all forks: a third of a small cell's time."""
    import lm_eval.evaluator  # noqa: F401
    import optuna  # noqa: F401

    from sqft_plugins.plugins import get_manager

    get_manager()


def in_own_process(bench: Bench, cell: Cell) -> bool:
    """Runs a cell in a fork of this process, so that its peak memory is its own. Whether it ended well."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(bench, cell))
    process.start()
    process.join()
    return process.exitcode == 0


def _run(bench: Bench, cell: Cell) -> None:
    bench.about = circumstances()
    if bench.run(cell) is None:
        say(f"{cell.key}: another process is at it")


def check_settings(bench: Bench) -> None:
    """Raises SQFTError where --out has cells of other settings: a table of both would compare nothing."""
    asked = json.loads(bench.settings.model_dump_json())
    for file in sorted(bench.out.glob("*.json")):
        other = {
            key: value for key, value in json.loads(file.read_text())["settings"].items() if value != asked.get(key)
        }
        if other:
            raise SQFTError(f"{file} was made with {other}: give another --out and --work, or remove it")


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]


def quick(options: Any) -> None:
    """Every method once, with a tiny random model, in this process and a folder that is removed."""
    from pruning import tiny_model

    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        bench = Bench(at / "cells", at / "work", options.data_dir, QUICK, tiny_model(at / "model"), circumstances())
        seeds = {50: [0]}
        for cell in order(seeds):
            bench.run(cell)
        results = read(bench.out)
        picture(results, at / "paper.png")
        print(markdown(results, seeds))
        write_json(options.json, results)


def write_json(file: str | None, results: list[dict[str, Any]]) -> None:
    if file:
        Path(file).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
