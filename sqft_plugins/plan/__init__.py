"""Before the long run: what each step will take, what it will leave on disk, and whether it fits (`sqft plan`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins.lazy import lazy

if TYPE_CHECKING:
    from sqft_plugins.plan.run import machine_now, plan_folder
    from sqft_plugins.plan.settings import PlanSettings

__all__ = ["PlanSettings", "machine_now", "plan_folder"]
__getattr__ = lazy(__name__, {"PlanSettings": "settings", "machine_now": "run", "plan_folder": "run"})
