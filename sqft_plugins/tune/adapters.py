"""The names by which value planes still open adapters; `sqft_plugins.adapter.saved` is their home."""

from __future__ import annotations

from pathlib import Path

from sqft_plugins.adapter.folder import AdapterFolder
from sqft_plugins.adapter.saved import SavedAdapter
from sqft_plugins.elastic import Rank
from sqft_plugins.plugins.protocols import Tuner


def check_adapter(path: str | Path) -> Path:
    return AdapterFolder(path).path


def tuner_of(path: Path) -> Tuner:
    return SavedAdapter(path).tuner


def choose_rank(rank: Rank, tuner: Tuner, adapter: Path) -> Rank:
    return SavedAdapter(adapter).choose_rank(rank)
