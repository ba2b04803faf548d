"""`sqft serve`: the command line and environment of a vLLM server, started and watched."""

DEFAULT_SLOTS = 4
"""Adapters in one batch; vLLM's own default is 1."""
