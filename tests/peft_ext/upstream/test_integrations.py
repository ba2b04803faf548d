"""PEFT's test_integrations, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_integrations", globals())
