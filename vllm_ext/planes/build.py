"""Making value planes (the codes of one rank over the base's): the very codes that `sqft merge` would write."""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqft_plugins.adapter.folder import AdapterFolder
from sqft_plugins.checkpoint import ModelFolder, check_output
from sqft_plugins.checkpoint.recode import Recoded
from sqft_plugins.elastic import Rank
from sqft_plugins.errors import DependencyError, SQFTError
from sqft_plugins.requantize import codes_changed, say_if_hardly_trained
from vllm_ext.adapters.checks import check_values
from vllm_ext.adapters.folder import PLANES, open_adapter
from vllm_ext.planes.format import SUFFIX, PlaneStamp, adapter_identity, base_identity, write_plane
from vllm_ext.planes.over_int4 import OverInt4, trained_over

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
    """Writes the planes of a quantization-aware adapter, one a rank → a report of each.

    model: the INT4 folder that is served.
    adapter: the adapter's folder.
    ranks: as `sqft merge --rank` takes them.
    base: the float model that the adapter was trained over, where it was not `model` itself.
    out: a folder (default: `planes` in the adapter's, where servers look), or a file name ending in .safetensors for a
    single rank.

    Raises SQFTError for an adapter of another kind, MismatchError for an adapter of another base.
    """
    # everything that can be refused
    int4, folder = ModelFolder(model), AdapterFolder(adapter)
    identity = base_identity(int4)
    if folder.kind != "quantization-aware":
        raise SQFTError(f"adapter {adapter} is not quantization-aware, only such a one has value planes")
    check_values(open_adapter(adapter))
    single = out is not None and str(out).endswith(SUFFIX)
    if single and len(ranks) > 1:
        raise SQFTError(f"--out {out} is one file, for {len(ranks)} ranks: name a folder")
    target = Path(out) if out is not None else folder.path / FOLDER
    if single:
        check_output(target, overwrite)

    # the codes of the base alone
    alone = base is None and trained_over(folder) == "int4"
    source: OverInt4 | ByTuner = OverInt4(int4, folder) if alone else ByTuner(int4, folder.path, base)
    plain = source.plain()
    adapted = adapter_identity(folder.path)

    reports: dict[Path, dict[str, Any]] = {}
    for rank in ranks:
        numbers = source.ranks(rank)
        file = target if single else target / f"{_name(numbers)}{SUFFIX}"
        if file in reports:  # two names of one rank
            continue

        # the codes with the adapter
        merged = source.merged(numbers)
        changed = codes_changed(merged, plain)
        say_if_hardly_trained(folder.path, changed)
        stamp = PlaneStamp(base=identity, adapter=adapted, ranks=numbers, codes_changed=changed)
        write_plane(file, stamp, merged, overwrite)

        size = file.stat().st_size
        reports[file] = {
            "out": str(file),
            "rank": rank,
            "modules": len(merged.codes),
            "bytes": size,
            "bits_per_weight": 8 * size / sum(codes.numel() for codes in merged.codes.values()),
            "codes_changed": changed,
        }
    return list(reports.values())


class ByTuner:
    """The codes by the tuner that trained the adapter, which has the model in memory: for one over a float base. The
    methods are those of OverInt4."""

    def __init__(self, int4: ModelFolder, adapter: Path, base: str | Path | None):
        if find_spec("peft") is None:
            raise DependencyError(
                "making the value plane of an adapter over a float base needs PEFT: pip install 'sqft-plugins[peft]', "
                "or make it where that is installed, with `sqft export plane`"
            )
        import torch

        from sqft_plugins.adapter.saved import SavedAdapter
        from sqft_plugins.checkpoint import load_model

        self.int4, self.saved = int4, SavedAdapter(adapter)
        over = int4.path if base is None else Path(base)
        model = load_model(over, dtype=torch.float32)
        self.model = self.saved.tuner.load(model, adapter, None if over == int4.path else int4.path)

    def ranks(self, rank: Rank) -> dict[str, int]:
        return dict(self.saved.tuner.set_rank(self.model, self.saved.choose_rank(rank)))

    def plain(self) -> Recoded:
        return self.saved.recoded(self.int4, self.model, merged=False)

    def merged(self, ranks: Mapping[str, int]) -> Recoded:
        return self.saved.recoded(self.int4, self.model)  # at the ranks that were set


def base_of(adapter: Path) -> Path:
    """The INT4 folder that an adapter remembers: its grid, or its base."""
    folder = AdapterFolder(adapter)
    return Path(folder.config.get("grid") or folder.base or "")


def _name(ranks: dict[str, int]) -> str:
    """r16 where all modules have that rank. A server goes by the stamp, not by this."""
    numbers = sorted(set(ranks.values()))
    if len(numbers) == 1:
        return f"r{numbers[0]}"
    return f"r{numbers[0]}-{numbers[-1]}-{zlib.crc32(json.dumps(ranks, sort_keys=True).encode()):08x}"


def main(words: str) -> int:
    """What a server runs in a process of its own (store.py). words: the arguments of `export_planes`, as JSON."""
    try:
        export_planes(**json.loads(words))
        return 0
    except SQFTError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
