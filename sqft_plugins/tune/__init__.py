"""Tuning adapters on Trainer: data, loss, training, extraction and merging."""

from sqft_plugins.tune.settings import AdapterSettings, TrainSettings

__all__ = ["AdapterSettings", "TrainSettings"]
