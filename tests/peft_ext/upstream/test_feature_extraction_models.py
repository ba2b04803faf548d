"""PEFT's test_feature_extraction_models, aimed at SQFTConfig."""

from __future__ import annotations

from aim import reaim

reaim("test_feature_extraction_models", globals())
