"""`python -m sqft_plugins.canary [--json] [--no-probes] [--list]`: what has moved in the packages that are installed.

For a scheduled job, and for who has an environment that nobody tried. Exit status 1 where something has moved.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from sqft_plugins.canary.compare import Compared, compare, lists, looked_for


def lines(results: Sequence[Compared]) -> list[str]:
    """What is printed: a line for each package, below it what has moved."""
    shown = []
    for result in results:
        how = " is not installed: skipped" if result.version is None else f" {result.version}: {result.summary}"
        shown.append(f"{result.surface}: {result.package}{how}")
        shown += [f"  {moved}" for moved in (*result.moved, *result.known)]
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sqft_plugins.canary", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--no-probes", action="store_true", help="import nothing: read sources alone")
    parser.add_argument("--list", action="store_true", help="print every name that is looked for, compare nothing")
    given = parser.parse_args(arguments)

    if given.list:
        for surface, touch in looked_for(lists()):
            takes = "" if touch.parameters is None else f"({touch.parameters})"
            place = f" ({touch.used})" if touch.used else ""
            print(f"{surface}: {touch.name}{takes}: {touch.loss}{place}")
        return 0

    os.environ.setdefault("TQDM_DISABLE", "1")  # compressed-tensors has a progress bar for each tiny model
    results = compare(lists(), probe=not given.no_probes)
    moved = any(result.moved for result in results)
    if given.json:
        print(json.dumps({"ok": not moved, "packages": [asdict(result) for result in results]}, indent=2))
    else:
        print("\n".join(lines(results)))
    return int(moved)


if __name__ == "__main__":
    sys.exit(main())
