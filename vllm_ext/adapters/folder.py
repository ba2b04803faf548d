"""An adapter folder as a server sees it: which ranks it offers, whether it can be served, and whether it has changed.

Only headers are read here; the tensors are read where they are needed, in the worker (load.py). No vLLM needed.
"""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path

from sqft_plugins.adapter.folder import CONFIG, WEIGHTS, AdapterFolder
from sqft_plugins.configurations import DEFAULT, FOLDER, saved_configuration, saved_configurations
from sqft_plugins.elastic import NAMED_RANKS, configuration, parse_rank
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.identity import file_hash, record_of
from vllm_ext.adapters.names import Variant

PLANES = "planes"
"""The subfolder of exported value planes (the codes of one rank each)."""
NAMED = ("max", "heuristic", "min")
"""The named ranks that are offered; `median` is understood too."""

Records = tuple[tuple[str, int, int, int, int, int], ...]
"""(path, and what `sqft_plugins.identity.record_of` gives) of each file and folder, 0 for the last of a folder."""


class UnknownRankError(SQFTError):
    """An adapter is there, but not at this rank."""


class ServedAdapter(AdapterFolder):
    """An adapter folder that can be served, with its ranks by the names that requests give. `open_adapter` makes it.

    source: the folder of which this one is a copy, None where it is none.
    """

    def __init__(self, path: Path):
        super().__init__(path, path.name)
        self.source: Path | None = None

    @property
    def is_whole(self) -> bool:
        """Whether its files are still there: somebody may have tidied a copy away. Costs a few microseconds."""
        return all((self.path / file).exists() for file in (CONFIG, WEIGHTS))

    @cached_property
    def variants(self) -> list[str | None]:
        """What may stand behind the @, None for the plain name. One configuration may have several names."""
        if not self.is_elastic:
            return [None]
        return [None, *NAMED, *(f"r{rank}" for rank in self.rank_choices), *saved_configurations(self.path)]

    def ranks(self, rank: str | None) -> dict[str, int]:
        """{module: rank} of a variant. Raises UnknownRankError with those there are, CheckpointError for a saved
        configuration that is damaged or does not fit."""
        if not self.is_elastic:
            if rank is not None:
                raise UnknownRankError(f"adapter {self.name} has a fixed rank: ask for {self.name}")
            return {module: pair.rank for module, pair in self.pairs.items()}

        # a saved configuration
        saved = saved_configurations(self.path)
        if rank is None:
            rank = DEFAULT if DEFAULT in saved else "heuristic"
        if rank in saved:
            try:
                return configuration(saved_configuration(self.path, rank), self.pairs, self.rank_choices)
            except SQFTError as error:
                raise CheckpointError(f"configuration {rank} of adapter {self.name}: {error}") from error

        # one rank in every module
        try:
            number = parse_rank(rank, self.rank_choices)
            if rank not in (*NAMED_RANKS, f"r{number}"):  # such as @r8, 8, r08: one name for one thing
                raise SQFTError(f"rank {rank!r} is written r{number}")
        except SQFTError as error:
            known = ", ".join(str(variant) for variant in self.variants if variant)
            raise UnknownRankError(f"adapter {self.name} is not served at {rank[:64]!r}: use {known}") from error
        return dict.fromkeys(self.pairs, number)

    def max_rank(self, rank: str | None) -> int:
        """The largest rank of a variant: what the server's --max-lora-rank must allow."""
        return max(self.ranks(rank).values())


def open_adapter(path: str | Path) -> ServedAdapter:
    """Reads and checks the configuration and the headers. Raises CheckpointError for a folder that is not whole, or of
    another kind."""
    path = Path(path)
    try:
        folder = ServedAdapter(path)
        _check(folder)
    except OSError as error:
        raise CheckpointError(f"adapter {path.name} was removed while it was read ({error})") from error
    return folder


def open_variant(variant: Variant) -> ServedAdapter:
    """The adapter of a variant. Raises as `open_adapter`, and MismatchError where its files are not of the variant's
    version any more."""
    folder = open_adapter(variant.folder)
    if variant.version and variant.version != signature(variant.folder):
        raise MismatchError(
            f"adapter {folder.name} has changed since this request was made: ask lora_request for it again"
        )
    return folder


def _check(folder: ServedAdapter) -> None:
    name = folder.name
    if folder.method not in ("SQFT", "LORA"):
        raise CheckpointError(f"adapter {name} is of type {folder.method or 'unknown'}, served are SQFT and LORA")
    if folder.weights.name != WEIGHTS:
        raise CheckpointError(f"adapter {name} has no {WEIGHTS}, and a pickle is not served: save it anew")

    # configuration and tensors
    folder.check_config()
    if not folder.pairs:
        raise CheckpointError(f"adapter {name} holds no lora_A and lora_B: save it with save_pretrained")
    for pair in folder.pairs.values():
        folder.check_pair(pair)
    rank = folder.config.get("r")
    if rank is None:
        raise CheckpointError(f"adapter {name}: {CONFIG} has no r: copy the adapter again")

    # the search space is that of all modules
    if folder.config.get("rank_choices") is not None:
        choices = folder.rank_choices
        wrong = next((module for module, pair in folder.pairs.items() if pair.rank != rank), None)
        if wrong is not None:
            raise CheckpointError(f"adapter {name}: {wrong} has a rank of its own, {choices} are of all: train anew")

    # what else the file holds is vLLM's own to read
    if folder.others and (folder.is_elastic or folder.kind != "dense"):
        raise CheckpointError(
            f"adapter {name} holds {folder.others[0]} beside lora_A and lora_B, which cannot be served at a rank: "
            "merge it (`sqft merge`), or train it without"
        )


def signature(path: Path) -> str | None:
    """Another one where a file that decides an adapter's answers has other content; None where the adapter is gone.
    Asked for at every request: costs a few microseconds while nothing changes, after a change a reading of the files.
    """
    try:
        files = [path / CONFIG, path / WEIGHTS, *saved_configurations(path).values()]
        hashes = [(str(file.relative_to(path)), file_hash(file)) for file in files]
    except OSError:
        return None
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]


def records(path: Path) -> Records:
    """What the kernel notes of all that lies in an adapter's folder, whether it is read or not: a part of a file that
    is being copied, too. Folders that are no part of an adapter, and what links to them lead to, are not looked into.
    Raises OSError where the adapter is gone."""
    folders = [folder for folder in (path, path / FOLDER, path / PLANES) if folder == path or folder.is_dir()]
    entries = [entry for folder in folders if folder != path / PLANES for entry in os.scandir(folder)]
    files = sorted(Path(entry.path) for entry in entries if entry.is_file())
    found = [(str(file), *record_of(file)) for file in files]
    # renaming a folder sets the last, though nothing in it was written
    return tuple(found + [(str(folder), *record_of(folder)[:4], 0) for folder in folders])
