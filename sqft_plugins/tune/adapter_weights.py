"""`weights_file`, for the value planes alone, until they read adapters through `AdapterFolder`."""

from __future__ import annotations

from sqft_plugins.adapter.folder import weights_in as weights_file

__all__ = ["weights_file"]
