"""PEFT's test_lora_conversion, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_lora_conversion", globals())
