"""PEFT's test_mapping, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_mapping", globals())
