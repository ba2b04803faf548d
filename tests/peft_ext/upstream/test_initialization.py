"""PEFT's test_initialization, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_initialization", globals())
