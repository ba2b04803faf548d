"""What lies in a folder: runs, models, adapters, searches, GGUF files, evaluations. Two levels are looked at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sqft_plugins.adapter import is_adapter
from sqft_plugins.errors import CheckpointError

Kind = Literal["run", "model", "adapter", "search", "file", "evaluation", "unknown"]
LEVELS = 2
SEARCH, TRIALS, STAGES, RECIPE, DEMO = "search.json", "trials.csv", "stages", "recipe.yaml", "report.json"
COMPANIONS = (".html", ".md", ".png", ".csv", ".journal", ".lock", ".log", ".txt", ".yaml", ".yml", ".db")
"""Files that belong to what stands beside them, or say nothing by themselves."""


@dataclass(frozen=True)
class Found:
    """name: the path below the folder that was asked for, or the folder's own name."""

    kind: Kind
    path: Path
    name: str


def find(root: Path) -> list[Found]:
    """What `root` is or holds, "unknown" ones included. Raises CheckpointError where there is nothing at `root`."""
    if not root.exists():
        raise CheckpointError(f"{root} is not there: give the folder of a run, a model, an adapter or a search")
    kind = kind_of(root)
    name = root.resolve().name or str(root)
    if kind in ("run", "unknown") and root.is_dir():
        head = [Found("run", root, name)] if kind == "run" else []
        return head + list(_below(root, root, LEVELS))
    return [Found(kind, root, name)]


def kind_of(path: Path) -> Kind:
    """By the files that a folder has, and by the content of a JSON file. A damaged JSON file is "evaluation", so that
    reading it tells what is wrong."""
    if path.is_dir():
        if is_adapter(path):
            return "adapter"
        if (path / "config.json").is_file():
            return "model"
        if (path / SEARCH).is_file():
            return "search"
        return "run" if (path / STAGES).is_dir() else "unknown"

    if path.suffix == ".gguf":
        return "file"
    if path.suffix != ".json":
        return "unknown"
    try:
        return "evaluation" if is_evaluation(json.loads(path.read_text())) else "unknown"
    except (ValueError, OSError, RecursionError):
        return "evaluation"


def is_evaluation(value: Any) -> bool:
    """Whether this is a report in lm-evaluation-harness' layout: results → task → "METRIC,FILTER"."""
    if not isinstance(value, dict) or not isinstance(value.get("results"), dict):
        return False
    rows = value["results"].values()
    return bool(rows) and all(isinstance(row, dict) and any("," in str(key) for key in row) for row in rows)


def _below(folder: Path, root: Path, levels: int) -> Iterator[Found]:
    run = (folder / STAGES).is_dir()
    for path in sorted(folder.iterdir()):
        name = path.relative_to(root).as_posix()
        if path.name.startswith(".") or (run and path.name in (STAGES, DEMO, RECIPE)):
            continue

        kind = kind_of(path)
        if kind == "unknown" and path.is_file() and path.suffix in COMPANIONS:
            continue

        # a folder that is nothing itself is named only where it holds nothing known
        looked_into = kind in ("run", "unknown") and path.is_dir() and levels > 1
        inside = list(_below(path, root, levels - 1)) if looked_into else []
        known = kind != "unknown" or all(found.kind == "unknown" for found in inside)
        if known:
            yield Found(kind, path, name)
        if kind == "run" or not known:
            yield from inside
