"""What every benchmark shares: interleaved timing, the environment, the JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch


def command(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """A benchmark's command line: --quick, which does what `quick` says, and --json. It may have more."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", metavar="FILE", help="Where to write environment, results and ratios.")
    return parser


def interleaved(
    candidates: Mapping[str, Callable[[], object]], rounds: int, limit: float = float("inf")
) -> dict[str, list[float]]:
    """Seconds of each candidate, `rounds` times, one after the other in every round, every second round backwards, so
    that a busy moment of the machine hits all of them. One round before is not counted. After `limit` seconds no
    further round begins, but there are three at least."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    begin = time.perf_counter()
    for number in range(rounds + 1):
        if number > 3 and time.perf_counter() - begin > limit:
            break
        order = list(candidates.items())
        for name, call in order if number % 2 else reversed(order):
            start = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(ours: list[float], peer: list[float], goal: float | None) -> dict[str, float | None]:
    """median, min and max of ours / peer, round by round, beside the goal."""
    values = [a / b for a, b in zip(ours, peer, strict=True)]
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "goal": goal}


def environment() -> dict[str, Any]:
    """Versions, processor, threads."""
    from importlib.metadata import version

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    packages = ("torch", "transformers", "peft", "sqft-plugins")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "processor": model,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "threads": torch.get_num_threads(),
    }


def report(result: Mapping[str, Any], file: str | None) -> None:
    """Prints the ratios as a table and writes the JSON where a file is named."""
    width = max((len(name) for name in result["ratios"]), default=0)
    print(f"{'':{width}}  median     min     max    goal")
    for name, row in result["ratios"].items():
        goal = "-" if row["goal"] is None else f"{row['goal']:.2f}"
        print(f"{name:{width}}  {row['median']:6.2f}  {row['min']:6.2f}  {row['max']:6.2f}  {goal:>6}")
    if file:
        Path(file).write_text(json.dumps(result, indent=2) + "\n")


def end_with_findings(wrong: int, tried: str, result: Mapping[str, Any], file: str | None) -> NoReturn:
    """Prints the one figure of a promise, writes the JSON where a file is named, and ends: with code 1 where there is a
    finding. tried: in how many of what."""
    print(f"{wrong} findings in {tried}")
    if file:
        Path(file).write_text(json.dumps({"environment": environment(), **result}, indent=2) + "\n")
    sys.exit(wrong > 0)
