"""What gguf_ext offers to sqft, through the hooks. Everything is imported when it is used."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqft_plugins.plugins import hookimpl
from sqft_plugins.plugins.loading import without_package

if TYPE_CHECKING:
    from sqft_plugins.checkpoint import GridStamp, ModelFile
    from sqft_plugins.cli import Verbs


class GGUFExporter:
    """`sqft export gguf`."""

    name = "gguf"

    @property
    def command(self) -> Any:
        from gguf_ext.cli.export import export_command

        return export_command

    def export(self, model: Path, target: Path, overwrite: bool = False) -> dict[str, Any]:
        from gguf_ext.export import export_gguf

        return export_gguf(model, target, overwrite=overwrite).as_dict()

    def verify(self, model: Path, target: Path) -> dict[str, Any]:
        from gguf_ext.verify.tensors import verify_gguf

        report = verify_gguf(model, target)
        return {
            **report.as_dict(),
            "equal": report.exact,
            "zeros_kept": 1 - report.pruned_nonzero / max(report.pruned, 1),
            "bits_per_weight": 8 * report.masked_bytes / max(report.masked_weights, 1),
        }

    def check_options(self, **options: Any) -> None:
        from gguf_ext.settings import Options

        # The others, such as compact, are of the output: the command checks them where the recipe makes its line.
        Options(**{name: value for name, value in options.items() if name in Options.model_fields})

    def estimate(self, model: Path, modules: Collection[str], grid: GridStamp) -> dict[str, Any]:
        from gguf_ext.estimate import estimate_gguf

        return estimate_gguf(model, modules, grid)


class LoraExporter:
    """`sqft export gguf-lora`. The `model` of its functions is an adapter folder."""

    name = "gguf-lora"

    @property
    def command(self) -> Any:
        from gguf_ext.cli.export import lora_command

        return lora_command

    def export(self, model: Path, target: Path, overwrite: bool = False) -> dict[str, Any]:
        from gguf_ext.lora.export import export_lora

        return export_lora(model, target, overwrite=overwrite).as_dict()


class PatchExporter:
    """`sqft export patch`. The `model` of its functions is the adapter folder, over the file that it remembers."""

    name = "patch"

    @property
    def command(self) -> Any:
        from gguf_ext.cli.patch import export_patch_command

        return export_patch_command

    def export(self, model: Path, target: Path, overwrite: bool = False) -> dict[str, Any]:
        from gguf_ext.patch import export_patch
        from sqft_plugins.adapter import AdapterFolder

        folder = AdapterFolder(model)
        return export_patch(folder.config.get("grid") or folder.base or "", model, target, overwrite=overwrite)


class GGUFModels:
    """GGUF files as models to train."""

    name = "gguf"

    def opens(self, model: str | Path) -> bool:
        from gguf_ext.model.hub import is_gguf

        return is_gguf(model)

    def locate(self, model: str | Path) -> Path:
        from gguf_ext.model.hub import locate

        return locate(model)

    def open(self, path: Path) -> ModelFile:
        from gguf_ext.model.file import GGUFModel

        return GGUFModel(path)


@hookimpl
def sqft_exporters() -> list[Any]:
    return [GGUFExporter(), LoraExporter(), PatchExporter()]


@hookimpl
def sqft_makers() -> list[Any]:
    from gguf_ext.quantize.maker import GGUFMaker

    return [GGUFMaker()]


@hookimpl
def sqft_engines() -> list[Any]:
    from gguf_ext.run.session import LlamaCpp

    return [LlamaCpp()]


@hookimpl
def sqft_inspectors() -> list[Any]:
    from gguf_ext.inspector import GGUFInspector

    return [GGUFInspector()]


@hookimpl
def sqft_grids() -> list[Any]:
    from gguf_ext.blocks import TensorType, grid_kind
    from sqft_plugins.grid import BUILTIN

    kinds = (grid_kind(kind) for kind in TensorType if kind.is_block)
    return [kind for kind in kinds if kind.name not in BUILTIN]


@hookimpl
def sqft_models() -> list[Any]:
    return [GGUFModels()]


@hookimpl
def sqft_checks() -> list[Any]:
    from gguf_ext.checks import checks

    return checks()


@hookimpl
def sqft_commands(group: Verbs) -> None:
    from gguf_ext.cli.backend_path import backend_path_command
    from gguf_ext.cli.chat import chat_command
    from gguf_ext.cli.patch import patch_command
    from gguf_ext.cli.verify import verify_command

    group.add_command(verify_command, section="look")
    group.add_command(chat_command, section="run")
    group.add_command(backend_path_command, section="run")
    group.add_command(patch_command, section="make")


@hookimpl
def sqft_upstream() -> list[Any]:
    return [without_package("gguf_ext.upstream").UPSTREAM]
