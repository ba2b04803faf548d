"""PEFT's test_lorafa, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_lorafa", globals())
