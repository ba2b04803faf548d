"""Before the long run: what each step will take, what it will leave on disk, and whether it fits (`sqft plan`).

`sqft_plugins.plan` has nothing to do with gguf_ext/write/plan.py, the layout of a file that is exported.

    run.py        plan_folder: all of it
    config.py     a model of which only config.json is here
    sizes.py      bytes on disk, exact
    costs.py      memory and time, estimated with rates that machine.py measures
    exports.py    which export formats the model could have
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqft_plugins.lazy import lazy

if TYPE_CHECKING:
    from sqft_plugins.plan.run import machine_now, plan_folder
    from sqft_plugins.plan.settings import PlanSettings

__all__ = ["PlanSettings", "machine_now", "plan_folder"]
__getattr__ = lazy(__name__, {"PlanSettings": "settings", "machine_now": "run", "plan_folder": "run"})
