"""PEFT's test_hub_features, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_hub_features", globals())
