"""How `sqft eval` shows and writes what it found."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.checkpoint.files import write_file
from sqft_plugins.cli.common import table


def show(result: Mapping[str, Any]) -> None:
    """The table that lm-evaluation-harness prints, under the settings that its numbers hold for; ours where none of its
    tasks was run."""
    shots = "the task's" if result["shots"] is None else result["shots"]
    limit = "none" if result["limit"] is None else result["limit"]
    over = f", adapter: {result['adapter']} at rank {result['rank']}" if result["adapter"] else ""
    packed = f", {kernel} kernel" if (kernel := result["runtime"].get("kernel")) else ""
    click.echo(f"{result['model']}{over}{packed}, limit: {limit}, shots: {shots}, seed: {result['seed']}")
    if result["n-shot"] and importlib.util.find_spec("lm_eval") is not None:
        from lm_eval.utils import make_table

        click.echo(make_table(dict(result)))
        if result.get("groups"):
            click.echo(make_table(dict(result), "groups"))
        return
    rows = []
    for task, scores in result["results"].items():
        for key, value in scores.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            error = scores[f"{metric}_stderr,{kind}"]
            count = result["n-samples"][task]
            shown = f"{value:.3f} ± {error if isinstance(error, str) else format(error, '.3f')}"
            rows.append([task, count.get("effective") or f"{count.get('tokens')} tokens", metric, shown])
    table(["task", "questions", "metric", "value"], rows)


def write_samples(path: str, samples: Mapping[str, list[Mapping[str, Any]]], overwrite: bool) -> None:
    """One JSON object a line: the task and what lm-eval logs of a question."""
    with write_file(path, overwrite, argument="--samples") as target, open(target, "w", encoding="utf-8") as file:
        for task, rows in samples.items():
            for row in rows:
                file.write(json.dumps({"task": task, **row}, ensure_ascii=False, default=str) + "\n")
