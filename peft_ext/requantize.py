"""The merge into INT4 as a pure function: sqft_plugins/requantize.py, by the name that it is public under."""

from sqft_plugins.requantize import requantized

__all__ = ["requantized"]
