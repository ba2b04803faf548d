"""What `sqft quantize --grid q4_0` calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_ext.quantize.names import FILE_TYPES, METHODS, check_pruned, file_type

if TYPE_CHECKING:
    from sqft_plugins.compress.settings import QuantizeSettings


class GGUFMaker:
    """Files in the types of llama.cpp."""

    name = "llama.cpp"
    grids = tuple(name.lower() for name in FILE_TYPES)
    methods = METHODS
    ending = ".gguf"

    def check(self, what: str, settings: QuantizeSettings, pruned: bool) -> None:
        if pruned:
            check_pruned(what, file_type(settings.grid), settings.method, settings.importance)

    def make(self, model: Path, out: Path, settings: QuantizeSettings, overwrite: bool = False) -> dict[str, Any]:
        from gguf_ext.quantize.run import quantize_gguf

        given = {
            name: getattr(settings, name) for name in ("method", "importance", "calibration", "sequences", "length")
        }
        return quantize_gguf(model, out, type=settings.grid, overwrite=overwrite, **given).as_dict()

    def describe(self, report: Mapping[str, Any]) -> str:
        total = sum(report["types"].values())
        types = ", ".join(f"{name} {count / total:.1%}" for name, count in report["types"].items())
        matrix = f"importance of {report['weighted']} layers" if report["weighted"] else "no importance matrix"
        worst = report["worst"]
        error = f", worst error {worst['error']:.1%} in {worst['name']}" if worst else ""
        zeros = f", {report['sparsity']:.2%} pruned and zero" if report["sparsity"] else ""
        return (
            f"{report['path']}: {report['bytes'] / 1e6:.1f} MB in {report['seconds']:g} s ({report['method']}, "
            f"{matrix}); {types} of the weights{zeros}{error}"
        )
