"""One adapter folder, as PEFT saves it: what it is, which ranks it offers, whether it is whole. No vLLM needed.

Only headers are read here; the tensors are read where they are needed, in the worker (load.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sqft_plugins.configurations import DEFAULT, FOLDER, saved_configuration, saved_configurations
from sqft_plugins.elastic import check_rank_choices, configuration, parse_rank
from sqft_plugins.errors import CheckpointError, SQFTError
from sqft_plugins.identity import file_hash, record_of
from sqft_plugins.lora import check_lora_config
from vllm_ext.adapters.header import read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLANES = "planes"
"""The subfolder of exported value planes."""
MAX_CONFIG_BYTES = 4 << 20
NAMED = ("max", "heuristic", "min")
"""The named ranks that are offered; `median` is understood too."""

Kind = Literal["lora", "masked", "quantization-aware"]
"""lora: B @ A is added as it is. masked: the delta is s · (B @ A) ⊙ M, of full rank. quantization-aware: it is put on
the base's INT4 grid."""


Signature = tuple[tuple[str, str], ...]
"""(name, SHA-256) of each file that decides an adapter's answers: another one has other content."""


Records = tuple[tuple[str, int, int, int, int, int], ...]
"""(path, and what `sqft_plugins.identity.record_of` gives) of each file and folder, 0 for the last of a folder."""


class UnknownRankError(SQFTError):
    """An adapter is there, but not at this rank."""


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter folder whose configuration and headers have been read. `open_adapter` makes it.

    modules: module name in the base → (rank, in, out), the largest rank. rank_choices: the search space, largest first;
    None where the rank is fixed. source: the folder of which this one is a copy. kept: adapted module → the tensor with
    the base's weight that PEFT saved along. others: tensors of no linear layer.
    """

    path: Path
    config: Mapping[str, Any]
    kind: Kind
    modules: Mapping[str, tuple[int, int, int]]
    rank_choices: list[int] | None
    source: Path | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()

    @cached_property
    def variants(self) -> list[str | None]:
        """What may stand behind the @, None for the plain name. One configuration may have several names."""
        if self.rank_choices is None:
            return [None]
        return [None, *NAMED, *(f"r{rank}" for rank in self.rank_choices), *saved_configurations(self.path)]

    def ranks(self, rank: str | None) -> dict[str, int]:
        """{module: rank} of a variant. Raises UnknownRankError with those there are, CheckpointError for a saved
        configuration that is damaged or does not fit."""
        if self.rank_choices is None:
            if rank is not None:
                raise UnknownRankError(f"adapter {self.path.name} has a fixed rank: ask for {self.path.name}")
            return {module: shape[0] for module, shape in self.modules.items()}
        saved = saved_configurations(self.path)
        if rank is None:
            rank = DEFAULT if DEFAULT in saved else "heuristic"
        if rank in saved:
            try:
                return configuration(saved_configuration(self.path, rank), self.modules, self.rank_choices)
            except SQFTError as error:
                raise CheckpointError(f"configuration {rank} of adapter {self.path.name}: {error}") from error
        try:
            number = parse_rank(rank, self.rank_choices)
            if rank not in (*NAMED, "median", f"r{number}"):  # such as @r8, 8, r08: one name for one thing
                raise SQFTError(f"rank {rank!r} is written r{number}")
        except SQFTError as error:
            known = ", ".join(str(variant) for variant in self.variants if variant)
            raise UnknownRankError(f"adapter {self.path.name} is not served at {rank[:64]!r}: use {known}") from error
        return dict.fromkeys(self.modules, number)

    def max_rank(self, rank: str | None) -> int:
        """The largest rank of a variant: what the server's --max-lora-rank must allow."""
        return max(self.ranks(rank).values())


def signature(path: Path) -> Signature | None:
    """None where the adapter is gone. Asked for at every request: costs a few microseconds while nothing changes, after
    a change a reading of the files."""
    try:
        files = [path / CONFIG, path / WEIGHTS, *_configurations(path)]
        return tuple((str(file.relative_to(path)), file_hash(file)) for file in files)
    except OSError:
        return None


def version_of(folder: Path) -> str:
    """Another one for an adapter folder with other content."""
    return hashlib.sha256(repr(signature(folder)).encode()).hexdigest()[:16]


def records(path: Path) -> Records | None:
    """What the kernel notes of all that lies in an adapter's folder, whether it is read or not: a part of a file that
    is being copied, too. None where the adapter is gone."""
    try:
        folders = [folder for folder in (path, path / FOLDER, path / PLANES) if folder == path or folder.is_dir()]
        entries = [entry for folder in folders if folder != path / PLANES for entry in os.scandir(folder)]
        files = sorted(Path(entry.path) for entry in entries if entry.is_file())
        found = [(str(file), *record_of(file)) for file in files]
        # renaming a folder sets the last, though nothing in it was written
        return tuple(found + [(str(folder), *record_of(folder)[:4], 0) for folder in folders])
    except OSError:
        return None


def changed(path: Path) -> float | None:
    """When something in an adapter's folder was last written, in seconds as `time.time` counts them. None where the
    adapter is gone."""
    found = records(path)
    return None if found is None else max(ctime or mtime for *_, mtime, ctime in found) / 1e9


def _configurations(path: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(path / FOLDER) if entry.is_file())
    except OSError:
        return []


def open_adapter(path: str | Path) -> AdapterFolder:
    """Reads and checks the configuration and the headers. Raises CheckpointError for a folder that is not whole, or of
    another kind."""
    path = Path(path)
    config = _read_config(path / CONFIG)
    method = str(config.get("peft_type", "")).upper()
    if method not in ("SQFT", "LORA"):
        raise CheckpointError(f"adapter {path.name} is of type {method or 'unknown'}, served are SQFT and LORA")
    check_lora_config(config, path.name)
    modules, others, kept = read_header(path / WEIGHTS, config)
    rank = config.get("r")
    if rank is None:
        raise CheckpointError(f"adapter {path.name}: {CONFIG} has no r: copy the adapter again")
    choices = config.get("rank_choices")
    if choices is not None:
        try:
            choices = check_rank_choices(choices, rank)
        except (SQFTError, TypeError) as error:
            raise CheckpointError(f"adapter {path.name}: {error}: copy the adapter again") from error
        wrong = next((name for name, shape in modules.items() if shape[0] != rank), None)
        if wrong is not None:  # a pattern of ranks: the search space is that of all modules
            raise CheckpointError(
                f"adapter {path.name}: {wrong} has a rank of its own, {choices} are of all: train anew"
            )
    kind, elastic = _kind(config, method), bool(choices and len(choices) > 1)
    if others and (elastic or kind != "lora"):  # the others are vLLM's own to read
        raise CheckpointError(
            f"adapter {path.name} holds {others[0]} beside lora_A and lora_B, which cannot be served at a rank: merge "
            "it (`sqft merge`), or train it without"
        )
    return AdapterFolder(path, config, kind, modules, choices if elastic else None, kept=kept, others=others)


def _kind(config: Mapping[str, Any], method: str) -> Kind:
    if method == "LORA":
        return "lora"
    if config.get("quantization_aware"):
        return "quantization-aware"
    return "masked" if config.get("sparse", True) else "lora"


def _read_config(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{CONFIG} of adapter {file.parent.name} has more than {MAX_CONFIG_BYTES >> 20} MiB")
        config = json.loads(file.read_text())
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"adapter {file.parent.name} has no readable {CONFIG} ({error}): copy the adapter again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{CONFIG} of adapter {file.parent.name} is no JSON object: copy the adapter again")
    return config
