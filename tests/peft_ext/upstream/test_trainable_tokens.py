"""PEFT's test_trainable_tokens, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_trainable_tokens", globals())
