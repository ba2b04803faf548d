"""What is known of a model or an adapter before it is there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sqft_plugins.adapter import AdapterFolder, is_adapter
from sqft_plugins.configurations import read_configuration
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.model_files import reader_of

Kind = Literal["model", "adapter", "ranks", "file", "part"]
NOUN = {
    "model": "a model",
    "adapter": "an adapter",
    "ranks": "a search",
    "file": "a model that is a file",
    "part": "an exported adapter",
}


@dataclass(frozen=True)
class Artefact:
    """A model, an adapter, the ranks of a search, or an exported file.

    name: of the step that makes it, or its path.
    kind: "ranks" is what a search finds; "file" a model that is a file, "part" an exported adapter.
    step: whether a step makes it.
    int4: whether it has codes, of any grid.

    source: of a model: the model that it was made from.
    base: of an adapter: the model that it is over; of ranks: their adapter.
    grid: of an adapter: the INT4 folder beside a float base.
    choices: of an adapter: the search space, a single rank where it is fixed.
    """

    name: str
    kind: Kind
    path: Path
    step: bool = True
    int4: bool = False
    pruned: bool = False
    source: Artefact | None = None
    base: Artefact | None = None
    grid: Artefact | None = None
    masked: bool = False
    quantization_aware: bool = False
    choices: Sequence[int] = field(default=())

    @property
    def lineage(self) -> Iterator[Artefact]:
        """A model, the model that it was made from, and so on up to one that no step has changed."""
        found: Artefact | None = self
        while found is not None:
            yield found
            found = found.source

    @property
    def codes(self) -> Artefact | None:
        """Of a quantization-aware adapter: the INT4 model whose grid it was trained through."""
        return (self.grid or self.base) if self.quantization_aware else None

    @property
    def described(self) -> str:
        """For messages."""
        what = {"model": "quantized" if self.int4 else "float", "adapter": "masked" if self.masked else "dense"}
        return f"{self.name} ({what[self.kind]})" if self.kind in what else self.name


def from_path(path: Path) -> Artefact:
    """An artefact that no step makes. Raises CheckpointError for a path that is no model and no adapter."""
    if reader_of(path) is not None:
        return Artefact(str(path), "file", path, step=False, int4=True)
    if is_adapter(path):
        return _adapter(path)
    from sqft_plugins.checkpoint import ModelFolder

    folder = ModelFolder(path)
    return Artefact(str(path), "model", path, step=False, int4=folder.grid is not None, pruned=folder.stamp is not None)


def ranks_from_file(path: str) -> dict[str, int]:
    """Raises SQFTError for a file that is missing or no configuration."""
    if not Path(path).is_file():
        raise SQFTError(f"rank {path} is no file: check the path")
    return read_configuration(path)


def _adapter(path: Path) -> Artefact:
    """Raises CheckpointError for an adapter whose base is not here."""
    folder = AdapterFolder(path)
    if folder.base is None or not Path(folder.base).exists():
        raise CheckpointError(f"adapter {path} was trained over {folder.base}, which is not here: put it there again")

    grid = folder.config.get("grid")
    return Artefact(
        str(path),
        "adapter",
        path,
        step=False,
        base=from_path(Path(folder.base)),
        grid=from_path(Path(grid)) if grid else None,
        masked=folder.is_masked,
        quantization_aware=folder.kind == "quantization-aware",
        choices=tuple(folder.rank_choices),
    )
