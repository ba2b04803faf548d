"""PEFT's test_encoder_decoder_models, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_encoder_decoder_models", globals())
