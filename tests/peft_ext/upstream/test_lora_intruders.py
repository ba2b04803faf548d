"""PEFT's test_lora_intruders, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_lora_intruders", globals())
