"""The plug-in host: hook specifications and the manager that loads plug-ins."""

from sqft_plugins.plugins.hookspecs import hookimpl
from sqft_plugins.plugins.loading import late
from sqft_plugins.plugins.manager import get_manager

__all__ = ["get_manager", "hookimpl", "late"]
