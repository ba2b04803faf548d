"""The rows of the report's table: what was found, what was measured of it, and what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqft_plugins.inspect.plot import block_and_kind
from sqft_plugins.report.data import Artefact, Layers, Score

DEMO_OUTPUTS = {"dense": "base", "tuned": "sub_adapter", "gguf": "model.gguf"}
"""What a stage of the demo scored, where its name is another one's."""


def of_model(name: str, path: Path, report: Mapping[str, Any]) -> tuple[Artefact, Layers]:
    """From `sqft inspect`'s report of a model folder or a GGUF file."""
    total, stamp = report["total"], report.get("stamp")
    pruned = total["pruned"]
    broken = total["violations"]
    count = sum(row["pruned"] * row["weights"] for row in report["layers"] if row["pruned"] is not None)
    artefact = Artefact(
        name=name,
        kind="GGUF" if report["kind"] == "gguf" else "model",
        what=" → ".join(stamp["pipeline"]) if stamp else _types(total["dtypes"]),
        path=str(path),
        zeros=total["zeros"],
        zeros_kept=None if pruned is None else 1 - broken / count if count else 1.0,
        bits_per_weight=total["bits_per_weight"],
        bytes=report["bytes"],
        layer_bytes=total["bytes"],
    )
    codes, grid = total.get("codes") or [], report.get("grid") or {"symmetric": True}  # a GGUF type has its zero there
    layers = Layers(
        name=name,
        cells=[(*block_and_kind(row["name"]), row["zeros"]) for row in report["layers"]],
        zeros=total["zeros"],
        weights=total["weights"],
        pruned=pruned,
        violations=broken,
        codes=codes,
        zero_code=len(codes) // 2 if codes and grid["symmetric"] else None,
    )
    return artefact, layers


def of_adapter(name: str, path: Path, report: Mapping[str, Any]) -> Artefact:
    """From `sqft inspect`'s report of an adapter folder."""
    choices = report["rank_choices"]
    ranks = ", ".join(map(str, choices)) if choices else ", ".join(report["total"]["ranks"])
    kind = "QA-SparsePEFT" if report["quantization_aware"] else "SparsePEFT" if report["sparse"] else report["type"]
    what = f"{kind} adapter, {'elastic ranks' if choices else 'rank'} {ranks}"
    training = report["training"] or {}
    seconds = training.get("seconds")
    return Artefact(
        name=name,
        kind="adapter",
        what=what,
        path=str(path),
        bytes=report["bytes"],
        seconds=seconds if isinstance(seconds, int | float) else None,
    )


def of_demo(row: Mapping[str, Any], task: str, found: Mapping[str, Artefact], prefix: str) -> Artefact:
    """A scored stage of `sqft demo`, with what was measured of its output. found: name → artefact of this run."""
    from sqft_plugins.demo.report import MEANING

    stage = str(row["name"])
    measured = found.get(f"{prefix}{DEMO_OUTPUTS.get(stage, stage)}")
    scored = [
        Score(task=task, metric="acc", value=row["accuracy"], stderr=row["accuracy_stderr"]),
        Score(task="text", metric="perplexity", value=row["perplexity"], higher_is_better=False),
    ]
    known = {key: row.get(key) for key in ("zeros_kept", "bits_per_weight", "bytes", "seconds")}
    base = measured or Artefact(name=stage, kind="GGUF" if stage == "gguf" else "model")
    return base.model_copy(
        update={
            "name": f"{prefix}{stage}",
            "what": MEANING.get(stage, base.what),
            "scores": scored,
            **{key: value for key, value in known.items() if value is not None},
        }
    )


def _types(dtypes: Mapping[str, int]) -> str:
    return f"{', '.join(dtypes)}, not stamped"
