"""What is in a path, per layer and in total (`sqft inspect`). Reads headers and one tensor at a time. Python's module
of that name is another one.

Model folders, float and INT4, and adapter folders are the core's; other kinds of path, such as `*.gguf`, come through
the hook `sqft_inspectors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins.lazy import lazy

if TYPE_CHECKING:
    from sqft_plugins.inspect.adapter import inspect_adapter
    from sqft_plugins.inspect.model import inspect_model
    from sqft_plugins.inspect.path import inspect_path
    from sqft_plugins.inspect.plot import plot_sparsity

__all__ = ["inspect_adapter", "inspect_model", "inspect_path", "plot_sparsity"]
__getattr__ = lazy(
    __name__,
    {"inspect_adapter": "adapter", "inspect_model": "model", "inspect_path": "path", "plot_sparsity": "plot"},
)
