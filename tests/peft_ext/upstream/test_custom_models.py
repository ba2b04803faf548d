"""PEFT's test_custom_models, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_custom_models", globals())
