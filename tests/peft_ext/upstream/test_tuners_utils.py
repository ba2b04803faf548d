"""PEFT's test_tuners_utils, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_tuners_utils", globals())
