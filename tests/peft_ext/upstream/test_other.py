"""PEFT's test_other, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_other", globals())
