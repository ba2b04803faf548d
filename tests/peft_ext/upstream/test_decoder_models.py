"""PEFT's test_decoder_models, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_decoder_models", globals())
