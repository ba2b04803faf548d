"""Making planes: the very codes that `sqft merge` would write."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from sqft_plugins.checkpoint import ModelFolder, check_output, load_model
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import DependencyError, SQFTError
from sqft_plugins.progress import say
from sqft_plugins.tune.adapters import check_adapter, choose_rank, tuner_of
from sqft_plugins.tune.merge_int4 import FEW, codes_changed
from vllm_ext.adapters.checks import check_values
from vllm_ext.adapters.folder import PLANES, open_adapter
from vllm_ext.planes.format import SUFFIX, PlaneStamp, adapter_identity, base_identity, write_plane

FOLDER = PLANES
"""The subfolder of an adapter in which a server looks for its planes."""


def export_planes(
    model: str | Path,
    adapter: str | Path,
    ranks: Sequence[Rank] = ("heuristic",),
    base: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> list[dict[str, Any]]:
    """Writes the planes of a quantization-aware adapter over the INT4 folder `model`, one a rank.

    base: the float model that the adapter was trained over, where it was not `model` itself. out: a folder (default:
    `planes` in the adapter's, where servers look), or a file name ending in .safetensors for a single rank. Raises
    SQFTError for an adapter of another kind, MismatchError for one of another base.
    """
    if find_spec("peft") is None:
        raise DependencyError(
            "making a value plane needs PEFT: pip install 'sqft-plugins[peft]', or make it where that is installed, "
            "with `sqft export plane`"
        )
    int4, adapter = ModelFolder(model), check_adapter(adapter)
    identity = base_identity(int4)
    tuner = tuner_of(adapter)
    if tuner.grid_of(adapter, int4.path) is None:
        raise SQFTError(f"adapter {adapter} is not quantization-aware, only such a one has value planes")
    check_values(open_adapter(adapter))
    over = ModelFolder(base) if base is not None else int4
    single = out is not None and str(out).endswith(SUFFIX)
    if single and len(ranks) > 1:
        raise SQFTError(f"--out {out} is one file, for {len(ranks)} ranks: name a folder")
    target = Path(out) if out is not None else adapter / FOLDER
    if single:
        check_output(target, overwrite)
    tuned = tuner.load(
        load_model(over.path, dtype=torch.float32), adapter, None if over.path == int4.path else int4.path
    )
    plain = tuner.quantized(tuned, merged=False)
    adapted = adapter_identity(adapter)
    reports: dict[Path, dict[str, Any]] = {}
    for rank in ranks:
        numbers = dict(tuner.set_rank(tuned, choose_rank(rank, tuner, adapter)))
        file = target if single else target / f"{_name(numbers)}{SUFFIX}"
        if file in reports:  # two names of one rank
            continue
        merged = tuner.quantized(tuned)
        changed = codes_changed(merged, plain, int4.masks)
        if changed < FEW:
            say(f"{adapter} changes {changed:.3%} of the kept codes: it was hardly trained, or too gently")
        stamp = PlaneStamp(base=identity, adapter=adapted, ranks=numbers, codes_changed=changed)
        write_plane(file, stamp, {name: weight.codes.cpu() for name, weight in merged.items()}, int4, overwrite)
        weights = sum(weight.codes.numel() for weight in merged.values())
        size = file.stat().st_size
        reports[file] = {
            "out": str(file),
            "rank": rank,
            "modules": len(merged),
            "bytes": size,
            "bits_per_weight": 8 * size / weights,
            "codes_changed": changed,
        }
    return list(reports.values())


def base_of(adapter: Path) -> Path:
    """The INT4 folder that an adapter remembers: its grid, or its base."""
    config = json.loads((check_adapter(adapter) / "adapter_config.json").read_text())
    return Path(config.get("grid") or config.get("base_model_name_or_path") or "")


def _name(ranks: dict[str, int]) -> str:
    """r16 where all modules have that rank. A server goes by the stamp, not by this."""
    numbers = sorted(set(ranks.values()))
    if len(numbers) == 1:
        return f"r{numbers[0]}"
    return f"r{numbers[0]}-{numbers[-1]}-{zlib.crc32(json.dumps(ranks, sort_keys=True).encode()):08x}"
