"""PEFT's test_loraplus, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_loraplus", globals())
