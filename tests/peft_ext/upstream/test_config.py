"""PEFT's test_config, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_config", globals())
