"""PEFT's test_token_classification_qa, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_token_classification_qa", globals())
