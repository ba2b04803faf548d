"""PEFT's test_helpers, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_helpers", globals())
