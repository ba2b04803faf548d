"""`sqft export gguf` and `sqft verify`."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option, table


@click.command(
    "gguf",
    epilog=examples(
        "sqft export gguf merged-int4 --out model.gguf",
        "sqft export gguf merged --float-type f32 --out model-f32.gguf",
        "sqft export gguf llama-int4 --out llama.gguf --pre llama-bpe --overwrite --json",
    ),
)
@click.argument("model", type=click.Path())
@click.option("--out", required=True, type=click.Path(), metavar="FILE.gguf", help="Where to write. Must not exist.")
@click.option("--pre", metavar="NAME", help="llama.cpp's name of the pre-tokenizer, where the tokenizer does not tell.")
@click.option(
    "--float-type",
    default="auto",
    metavar="TYPE",
    show_default=True,
    help="Of matrices that are not INT4: auto (the narrowest that is exact), f32, f16 or bf16.",
)
@overwrite_option
@json_option
def export_command(model: str, out: str, pre: str | None, float_type: str, overwrite: bool, as_json: bool) -> None:
    """Write MODEL for llama.cpp.

    MODEL is a folder with float or INT4 weights; the GGUF file holds the very same ones.
    """
    from gguf_ext.export import export_gguf

    report = export_gguf(model, out, overwrite=overwrite, pre=pre, float_type=float_type)

    def show() -> None:
        types = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
        click.echo(
            f"{report.path}: {report.bytes / 1e6:.1f} MB in {report.seconds:g} s, {report.architecture}, {types}"
        )
        click.echo(
            f"verified: {report.verified} tensors bit-equal, {report.pruned} pruned weights all 0; "
            f"tokenizer {report.tokenizer}"
        )

    emit(as_json, report.as_dict(), show)


@click.command(
    "verify",
    epilog=examples(
        "sqft verify merged-int4 model.gguf",
        "sqft verify merged-int4 model.gguf --json",
        "sqft verify merged model-f32.gguf && echo equal",
    ),
)
@click.argument("model", type=click.Path())
@click.argument("file", type=click.Path(), metavar="FILE.gguf")
@json_option
@click.pass_context
def verify_command(ctx: click.Context, model: str, file: str, as_json: bool) -> None:
    """Compare MODEL with FILE.gguf.

    Every weight of the folder is compared. Exit code 1 where anything differs.
    """
    from gguf_ext.verify import verify_gguf

    report = verify_gguf(model, file)

    def show() -> None:
        if report.differences:
            table(["name", "difference"], [(item.name, item.what) for item in report.differences])
        rounded = f", {report.rounded} of them rounded to the type in the file" if report.rounded else ""
        click.echo(f"{report.equal} of {report.tensors} tensors bit-equal{rounded}")
        click.echo(f"{report.pruned - report.pruned_nonzero} of {report.pruned} pruned weights are 0")
        click.echo("equal" if report.ok else "different")

    emit(as_json, report.as_dict(), show)
    if not report.ok:
        ctx.exit(1)
