"""The rows of the report's table: what was found, what was measured of it, and what it scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint import ModelFolder
from sqft_plugins.inspect.plot import block_and_kind
from sqft_plugins.report.data import Artefact, Layers, Score
from sqft_plugins.report.records import DemoStage

DEMO_OUTPUTS = {"dense": "base", "tuned": "sub_adapter", "gguf": "model.gguf"}
"""Stage of the demo → the output that it scored, where the name is another one."""


def of_model(name: str, path: Path, report: Mapping[str, Any]) -> tuple[Artefact, Layers]:
    """From `sqft inspect`'s report of a model folder or a GGUF file."""
    total, stamp = report["total"], report.get("stamp")
    pruned, broken = total["pruned"], total["violations"]
    masked = sum(row["pruned"] * row["weights"] for row in report["layers"] if row["pruned"] is not None)
    artefact = Artefact(
        name=name,
        kind="GGUF" if report["kind"] == "gguf" else "model",
        what=" → ".join(stamp["pipeline"]) if stamp else f"{', '.join(total['dtypes'])}, not stamped",
        path=str(path),
        zeros=total["zeros"],
        zeros_kept=None if pruned is None else 1 - broken / masked if masked else 1.0,
        bits_per_weight=total["bits_per_weight"],
        bytes=report["bytes"],
        layer_bytes=total["bytes"],
    )

    codes = total.get("codes") or []
    symmetric = (report.get("grid") or {"symmetric": True})["symmetric"]  # the types of GGUF are
    layers = Layers(
        name=name,
        cells=[(*block_and_kind(row["name"]), row["zeros"]) for row in report["layers"]],
        zeros=total["zeros"],
        weights=total["weights"],
        pruned=pruned,
        violations=broken,
        codes=codes,
        zero_code=len(codes) // 2 if codes and symmetric else None,
    )
    return artefact, layers


def of_unread_model(name: str, path: Path) -> Artefact:
    """What a model folder or a GGUF file is without reading its weights."""
    if path.is_file():
        return Artefact(name=name, kind="GGUF", path=str(path), bytes=path.stat().st_size)
    folder = ModelFolder(path)
    what = " → ".join(folder.stamp.pipeline) if folder.stamp else "not stamped"
    return Artefact(name=name, kind="model", what=what, path=str(path), bytes=folder.weight_bytes)


def of_adapter(name: str, path: Path, report: Mapping[str, Any]) -> Artefact:
    """From `sqft inspect`'s report of an adapter folder."""
    choices = report["rank_choices"]
    ranks = ", ".join(map(str, choices)) if choices else ", ".join(report["total"]["ranks"])
    kind = "QA-SparsePEFT" if report["quantization_aware"] else "SparsePEFT" if report["sparse"] else report["type"]
    return Artefact(
        name=name,
        kind="adapter",
        what=f"{kind} adapter, {'elastic ranks' if choices else 'rank'} {ranks}",
        path=str(path),
        bytes=report["bytes"],
    )


def of_demo(stage: DemoStage, task: str, found: Mapping[str, Artefact], prefix: str) -> Artefact:
    """A scored stage of `sqft demo`, with what was measured of its output.

    found: name → artefact of this run.
    prefix: of the names of this demo's outputs.
    """
    from sqft_plugins.demo.report import MEANING

    kind = "GGUF" if stage.name == "gguf" else "model"
    measured = found.get(f"{prefix}{DEMO_OUTPUTS.get(stage.name, stage.name)}") or Artefact(name=stage.name, kind=kind)
    recorded = {key: getattr(stage, key) for key in ("zeros_kept", "bits_per_weight", "bytes", "seconds")}
    return replace(
        measured,
        name=f"{prefix}{stage.name}",
        what=MEANING.get(stage.name, measured.what),
        scores=[
            Score(task=task, metric="acc", value=stage.accuracy, stderr=stage.accuracy_stderr),
            Score(task="text", metric="perplexity", value=stage.perplexity, higher_is_better=False),
        ],
        **{key: value for key, value in recorded.items() if value is not None},
    )
