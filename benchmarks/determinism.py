"""The same command elsewhere: is its output the same, byte for byte? And what does it cost?

    python benchmarks/determinism.py [--quick] [--only NAME ...] [--json FILE]

The commands of `kills.py`, each on a tiny random model, again with two threads, in a folder of another name, in another
time zone and locale (forked processes), and as a process of its own with another PYTHONHASHSEED, of which CPU-seconds
and the peak of memory are told: mostly what it imports. One figure: the files that differ, of so many runs. Of reports
in JSON the values that two equal runs do not share (seconds, memory) are left out. --quick: three of the commands.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import command, end_with_findings
from kills import COMMANDS, Reference, child, contents, fresh, import_all, prepare

QUICK = ("prune", "merge", "export gguf")


def threads() -> None:
    import torch

    torch.set_num_threads(2)


def elsewhere() -> None:
    """Another time zone and locale; where the locale is not installed, Python's own answer to it."""
    os.environ.update(TZ="Asia/Kathmandu", LC_ALL="tr_TR.UTF-8", LANG="tr_TR.UTF-8")
    time.tzset()


VARIATIONS: dict[str, Callable[[], None]] = {"two threads": threads, "time zone, locale": elsewhere}


def compared(name: str, inputs: Path, above: Path) -> dict[str, Any]:
    """One command, in every variation."""
    place, other = above / "place", above / "another folder"
    for folder in (place, other):
        folder.mkdir(parents=True, exist_ok=True)

    def run(disturb: Callable[[], None] = lambda: None, here: Path = place) -> dict[str, bytes]:
        os.chdir(here)
        fresh(inputs, here, "")
        if child(COMMANDS[name], disturb):
            raise SystemExit(f"{name} fails:\n{(here.parent / 'log').read_text()}")
        return contents(here)

    reference = Reference(run(), run())
    differences = {what: reference.differences(run(disturb), False) for what, disturb in VARIATIONS.items()}
    differences["another folder"] = reference.differences(run(here=other), False)

    os.chdir(place)
    fresh(inputs, place, "")
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "sqft_plugins.cli", *COMMANDS[name]], stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    differences["a process of its own"] = reference.differences(contents(place), False)
    return {
        "command": name,
        "differences": {what: found for what, found in differences.items() if found},
        "not compared": reference.free,
        "runs": len(differences),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "seconds": round(time.monotonic() - begin, 1),
        "peak_mib": usage.ru_maxrss >> 10,
    }


def main() -> None:
    parser = command(__doc__, "prune, merge and export")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), help="These commands")
    options = parser.parse_args()
    chosen = options.only or (QUICK if options.quick else list(COMMANDS))
    import_all()
    rows = []
    with tempfile.TemporaryDirectory(prefix="sqft-determinism-") as folder:
        os.environ["XDG_STATE_HOME"] = os.environ["SQFT_EVAL_CACHE"] = f"{folder}/state"
        inputs, above = Path(folder).resolve() / "up" / "inputs", Path(folder).resolve() / "work"
        inputs.mkdir(parents=True)
        os.chdir(inputs)
        prepare(inputs)
        for name in chosen:
            row = compared(name, inputs, above)
            rows.append(row)
            print(f"{name}: {row['cpu_seconds']} CPU-seconds, peak {row['peak_mib']} MiB", flush=True)
            for what, found in row["differences"].items():
                print(f"  {what}: {found}", flush=True)
        os.chdir("/")
    wrong = sum(len(found) for row in rows for found in row["differences"].values())
    tried = f"{sum(row['runs'] for row in rows)} runs of {len(rows)} commands"
    end_with_findings(wrong, tried, {"rows": rows}, options.json)


if __name__ == "__main__":
    main()
