"""PEFT's test_seq_classifier, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_seq_classifier", globals())
