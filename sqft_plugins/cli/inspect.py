"""sqft inspect: what is in a folder or a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import click
from pydantic import model_validator

from sqft_plugins.cli.common import table
from sqft_plugins.cli.verb import Found, Overwrite, verb
from sqft_plugins.inspect.plot import check_plot
from sqft_plugins.pattern import asked_patterns
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import THERE


class InspectSettings(Overwrite):
    pattern: str | None = option(None, "Look for this N:M, too; 1:4, 2:4 and 4:8 are always looked for.", metavar="N:M")
    plot: str | None = option(None, "Write a heat map of zeros, blocks × kind of layer.", "place", metavar="FILE.png")

    @model_validator(mode="after")
    def _check(self) -> Self:
        asked_patterns(self.pattern)
        if self.plot:
            check_plot(self.plot, self.overwrite)
        return self


@verb(
    "sqft inspect models/gemma-50",
    "sqft inspect models/gemma-50-int4 --plot sparsity.png",
    "sqft inspect models/gemma-24 --pattern 1:2",
    "sqft inspect model.gguf",
    "sqft inspect adapters/math --json",
    settings=InspectSettings,
)
@click.argument("path", type=THERE)
def command(path: str, settings: InspectSettings) -> Found:
    """Show what is in PATH, layer by layer.

    PATH is a model folder, float or INT4, an adapter, or a GGUF file.

    Zeros and their N:M, the mask and weights that break it, INT4 codes and scales, bits a weight, the GGUF type.
    """
    from sqft_plugins.inspect import inspect_path, plot_sparsity

    report = inspect_path(path, settings.pattern)
    if settings.plot:
        plot_sparsity(report, settings.plot, settings.overwrite)
    return Found(report, lambda: _show_adapter(report) if report["kind"] == "adapter" else _show_model(report))


def _show_model(report: Mapping[str, Any]) -> None:
    from sqft_plugins.compress.coverage import describe
    from sqft_plugins.inspect.report import conforming

    total, stamp = report["total"], report["stamp"] or {}
    columns = ["layer", "shape", "type", "zeros %", "N:M", "pruned %", "broken", "bits", "scale", "GGUF"]
    table(columns, [_model_row(row, conforming(row["patterns"])) for row in report["layers"]])
    click.echo(
        f"{report['path']}: {report['model_type']}, {total['weights'] / 1e6:.1f} M weights in {total['layers']} layers"
    )
    if report.get("coverage"):
        _line("coverage", describe(report["coverage"]))
    _line("types", _counted(total["dtypes"]))
    _line("zeros", f"{total['zeros']:.2%}{_of_model(report)}")
    _line("groups of N:M", ", ".join(f"{name} {fraction:.2%}" for name, fraction in total["patterns"].items()))
    if report["kind"] == "gguf":
        _line("mask", "not in a GGUF file: compare with its model folder, `sqft verify`")
    elif total["pruned"] is None:
        _line("mask", "none")
    else:
        broken, zero = total["violations"], total["kept_zero"]
        _line("mask", f"{total['pruned']:.2%} pruned, {broken} pruned weights are not zero, {zero} kept ones are zero")
        if report["mask_is_the_stamps"] is not None:
            _line("mask hash", "that of the stamp" if report["mask_is_the_stamps"] else "NOT that of the stamp")
    _line("bits a weight", f"{total['bits_per_weight']:.4g}")
    _line("file", f"{report['bytes'] / 2**20:.1f} MiB, of which the layers {total['bytes'] / 2**20:.1f} MiB")
    if report["kind"] == "gguf":
        _line("other tensors", _counted(report["other_dtypes"]))
    else:
        _line("as GGUF", _counted(total["gguf"]) + ("" if total["gguf_exact"] else ", scales not exact in fp16"))
    if report["grid"]:
        size = "per channel" if report["grid"]["group_size"] == -1 else f"group {report['grid']['group_size']}"
        symmetry = "symmetric" if report["grid"]["symmetric"] else "asymmetric"
        kind = report["grid"].get("name", f"int{report['grid']['bits']}").upper()  # folders of others have a name
        _line("grid", f"{kind}, {size}, {symmetry}")
    if "scale" in total:
        _line("scale", f"{total['scale'][0]:.3g} to {total['scale'][1]:.3g}")
    if "codes" in total:
        share = " ".join(f"{100 * n / sum(total['codes']):.1f}" for n in total["codes"])
        _line(f"codes 0..{len(total['codes']) - 1}", f"{share} %")
    if total["not_finite"]:
        _line("not finite", f"{total['not_finite']} weights are NaN or infinite")
    if stamp:
        _line("pipeline", f"{' → '.join(stamp['pipeline'])} (from {stamp.get('base')})")


def _model_row(row: Mapping[str, Any], pattern: str) -> list[Any]:
    return [
        row["name"],
        "×".join(map(str, row["shape"])),
        row["dtype"],
        f"{100 * row['zeros']:.2f}",
        pattern,
        "" if row["pruned"] is None else f"{100 * row['pruned']:.2f}",
        "" if row["violations"] is None else row["violations"],
        row["bits_per_weight"],
        f"{row['scale'][0]:.2g}..{row['scale'][1]:.2g}" if "scale" in row else "",
        row["gguf"],
    ]


def _show_adapter(report: Mapping[str, Any]) -> None:
    total, training = report["total"], report["training"]
    columns = ["rank", "in", "out", "dtype", "parameters"]
    table(["module", *columns], [[row["name"], *(row[c] for c in columns)] for row in report["layers"]])
    click.echo(
        f"{report['path']}: {report['type']} adapter, {total['parameters']:,} parameters in {total['modules']} modules"
    )
    for key in ("base", "alpha", "rank_choices", "sparse", "quantization_aware", "mask_hash", "scale_hash"):
        if report[key] is not None:
            _line(key, report[key])
    _line("ranks", ", ".join(f"{number} of rank {rank}" for rank, number in total["ranks"].items()))
    _line("file", f"{report['bytes'] / 2**20:.2f} MiB")
    if training:
        settings = training["training"] or {}
        _line(
            "trained",
            f"{settings.get('steps')} steps of {settings.get('batch_size')} at {settings.get('learning_rate')}, "
            f"loss {training['first_loss']:.3f} → {training['last_loss']:.3f}, {training['seconds']:.0f} s",
        )
    if total["not_finite"]:
        _line("not finite", f"{total['not_finite']} parameters are NaN or infinite")
    if report["stamp"]:
        _line("pipeline", " → ".join(report["stamp"].get("pipeline", [])))


def _of_model(report: Mapping[str, Any]) -> str:
    """The share of the whole model that these zeros are, of a model folder."""
    if not report.get("coverage"):
        return ""
    zeros = report["total"]["zeros"] * report["total"]["weights"]
    return f" of these layers, {zeros / report['coverage']['model']:.2%} of the whole model"


def _line(name: str, value: Any) -> None:
    click.echo(f"{name:16} {value}")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
