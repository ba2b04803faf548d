"""What vllm_ext offers to sqft, through the hooks.

Nothing here imports vllm: that takes 10 s, and `sqft` loads this module at every start.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins import hookimpl
from sqft_plugins.plugins.loading import without_package

if TYPE_CHECKING:
    from sqft_plugins.cli import Verbs
    from sqft_plugins.plugins.protocols import Check


class PlaneExporter:
    """`sqft export plane`. The `model` of its functions is the adapter folder, over the INT4 base that it remembers."""

    name = "plane"

    @property
    def command(self) -> Any:
        from vllm_ext.planes.cli import plane_command

        return plane_command

    def export(self, model: Path, target: Path, overwrite: bool = False) -> dict[str, Any]:
        from vllm_ext.planes.build import base_of, export_planes

        return {"planes": export_planes(base_of(model), model, out=target, overwrite=overwrite)}


@hookimpl
def sqft_exporters() -> list[PlaneExporter]:
    return [PlaneExporter()]


@hookimpl
def sqft_commands(group: Verbs) -> None:
    from vllm_ext.serve.cli import serve_command

    group.add_command(serve_command, section="run")


@hookimpl
def sqft_checks(deep: bool) -> list[Check]:
    from vllm_ext.checks import plugin_check, processor_check, torchvision_check, vllm_check

    return [vllm_check(), *plugin_check(), *processor_check(), *torchvision_check(deep)]


@hookimpl
def sqft_upstream() -> list[Any]:
    return [without_package("vllm_ext.upstream").UPSTREAM]
