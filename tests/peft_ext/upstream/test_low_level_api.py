"""PEFT's test_low_level_api, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_low_level_api", globals())
