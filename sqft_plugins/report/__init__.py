"""`sqft report`: one self-contained HTML page of a run.

find.py        what lies in a folder
read.py        the records of it, checked by records.py
artefacts.py   a row of the table each
collect.py     all of it joined, as data.py's Report
summary.py     that in one sentence
page.py        the page, of templates/, charts.py and draw.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint.files import check_output, write_file
from sqft_plugins.report.collect import collect
from sqft_plugins.report.page import GENERATOR, page

__all__ = ["collect", "page", "write_report"]
NAME = "report.html"


def write_report(
    path: str | Path,
    out: str | Path | None = None,
    *,
    title: str | None = None,
    quick: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the page of everything that `path` holds → what it says (`data.Report`), with `out`, its file.

    out: default `path`/report.html, or beside `path` where that is a file. A page of ours is replaced.
    title: the heading; default the name of the folder.
    quick: read no weights.
    overwrite: replace any other file, too.

    Raises SQFTError, before the page is begun, where nothing can be reported.
    """
    root = Path(path)
    target = Path(out) if out is not None else (root if root.is_dir() else root.parent) / NAME
    replace = overwrite or is_ours(target)
    check_output(target, replace)

    report = collect(root, title=title, quick=quick)
    content = page(report)
    with write_file(target, replace) as file:
        file.write_text(content, encoding="utf-8")
    return {"out": str(target), "bytes": len(content.encode()), **report.as_json()}


def is_ours(file: Path) -> bool:
    """Whether this is an earlier page of this command."""
    mark = f'<meta name="generator" content="{GENERATOR} '
    try:
        return file.is_file() and mark in file.read_text("utf-8", "replace")[:1000]
    except OSError:
        return False
