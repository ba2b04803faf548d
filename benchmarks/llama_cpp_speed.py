"""Speed, loading and memory of llama.cpp with the sparse kernels inside, against the same llama.cpp without them.

    python benchmarks/llama_cpp_speed.py [--quick] [--json FILE] [--densities 0.5 0.3] [--groups 32 128] [--rounds 5]

A random Llama of 1.1 billion parameters, its linears Q4_0 with that share of weights kept, embedding and head Q8_0, in
two processes: stock llama.cpp, whose own repacking is on, and the same with `gguf_ext.enable(density=1.0)`. Both take
turns in every round. A ratio is of speed, ours over stock's, round by round: more than 1 is faster. `cpu` is the same
of processor time at one thread, which other work on the machine changes less.

The share of kept weights up to which sparse pays, as gguf_ext/backend/csrc/choose.cpp has it, comes from here:

    python benchmarks/llama_cpp_speed.py --layers 4 --densities 0.8 0.7 0.6 0.5 --groups 32 128
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import command, environment, report
from llama_model import LAYERS, write_llama
from worker import Worker

from sqft_plugins.hardware import cores

GOALS = {("decode", 0.5, 128): 1.35, ("decode", 0.5, 32): 1.2, ("decode", 0.3, 128): 1.7}
LOAD_GOAL = 1.5


def started(file: Path, *mode: str) -> Worker:
    """One llama.cpp with the file loaded."""
    return Worker("llama_cpp_speed_worker.py", file, *mode, settings={"OMP_NUM_THREADS": str(cores())})


def main() -> None:
    parser = command(__doc__, "A model of two layers, few tokens, two rounds.")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.3], help="Shares of weights kept.")
    parser.add_argument("--groups", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--prefill", type=int, default=512, help="Tokens of a prompt.")
    parser.add_argument("--tokens", type=int, default=16, help="Tokens that are decoded in a round.")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores()}))
    parser.add_argument("--work", default=None, help="Where the models are written. Default: a folder for a while.")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.rounds, options.prefill, options.tokens = 2, 2, 64, 8

    orders = [("decode", options.tokens, count) for count in options.threads]
    orders += [("prefill", options.prefill, count) for count in options.threads if options.prefill]
    result: dict[str, Any] = {"environment": environment(), "layers": options.layers, "models": [], "ratios": {}}
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        for group in options.groups:
            for density in options.densities:
                file = Path(folder) / "model.gguf"
                write_llama(file, density, group, layers=options.layers)
                row = measured(file, orders, options.rounds)
                file.unlink()
                result["models"].append({"density": density, "group": group, **row})
                add_ratios(result, density, group, row)
    report(result, options.json)


def measured(file: Path, orders: list[tuple[str, int, int]], rounds: int) -> dict[str, Any]:
    """Both ways over one file, taking turns."""
    first = started(file, "stock")  # the file is in memory for the two that are timed
    first.close()
    workers = {"stock": started(file, "stock"), "sparse": started(file, "sparse", "1.0")}
    if workers["sparse"].began["why"]:
        raise SystemExit(f"llama.cpp computes alone here: {workers['sparse'].began['why']}")
    found: dict[str, Any] = {name: {"began": worker.began, "rounds": {}} for name, worker in workers.items()}
    for number in range(rounds + 1):
        for kind, tokens, threads in orders:
            for name in list(workers) if number % 2 else reversed(workers):
                answer = workers[name].ask(kind=kind, tokens=tokens, threads=threads)
                if number:  # one round before is not counted
                    found[name]["rounds"].setdefault(f"{kind} {threads}", []).append(answer)
    for worker in workers.values():
        worker.close()
    return {"bytes": file.stat().st_size, **found}


def add_ratios(result: dict[str, Any], density: float, group: int, row: dict[str, Any]) -> None:
    name = f"{1 - density:.0%} zeros, group {group}"
    for order, stock in row["stock"]["rounds"].items():
        kind, threads = order.split()
        ours = row["sparse"]["rounds"][order]
        goal = GOALS.get((kind, density, group)) or (1.0 if kind == "prefill" else None)
        keys = ("seconds", "cpu_seconds") if threads == "1" else ("seconds",)
        for key in keys:
            values = [a[key] / b[key] for a, b in zip(stock, ours, strict=True)]
            label = f"{kind}, {threads} threads{' (cpu)' if key != 'seconds' else ''}: {name}"
            numbers = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            result["ratios"][label] = {**numbers, "goal": goal}
    stock, ours = row["stock"]["began"], row["sparse"]["began"]
    held = ours["held"]
    for label, value, goal in (
        ("seconds to load, ours over stock's", ours["load"] / stock["load"], LOAD_GOAL),
        ("bytes of the linears, ours over the file's", held["packed_bytes"] / held["source_bytes"], None),
        ("resident, ours over stock's", ours["resident_mib"] / stock["resident_mib"], None),
        ("peak, ours over stock's", ours["peak_mib"] / stock["peak_mib"], None),
    ):
        result["ratios"][f"{label}: {name}"] = {"median": value, "min": value, "max": value, "goal": goal}


if __name__ == "__main__":
    main()
