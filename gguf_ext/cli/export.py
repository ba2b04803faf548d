"""`sqft export gguf` and `sqft verify`."""

from __future__ import annotations

from typing import Any

import click

from sqft_plugins.cli.common import emit, examples, json_option, overwrite_option, table


@click.command(
    "gguf",
    epilog=examples(
        "sqft export gguf merged-int4 --out model.gguf",
        "sqft export gguf merged --float-type f32 --out model-f32.gguf",
        "sqft export gguf merged-int4 --embedding-type q8_0 --split-max-size 2G --out model.gguf",
        "sqft export gguf olmo-int4 --template-gguf olmo-base.gguf --out olmo.gguf",
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
@click.option(
    "--embedding-type",
    default="auto",
    metavar="TYPE",
    show_default=True,
    help="Of the token embedding and the output head: auto (as --float-type), f32, f16, bf16 or q8_0.",
)
@click.option(
    "--rounding",
    default="refuse",
    metavar="refuse|allow",
    show_default=True,
    help="Of INT4 scales that fp16 does not hold exactly; the largest error is told.",
)
@click.option("--split-max-size", metavar="SIZE", help="Write a larger file in parts, such as 2G or 500M.")
@click.option(
    "--template-gguf",
    type=click.Path(),
    metavar="BASE.gguf",
    help="A file of the same base: its tokenizer and, where sqft has no table for the model, its names and metadata.",
)
@overwrite_option
@json_option
def export_command(model: str, out: str, overwrite: bool, as_json: bool, **options: Any) -> None:
    """Write MODEL for llama.cpp.

    MODEL is a folder with float or INT4 weights; the GGUF file holds the very same ones. Where an option makes it
    round some, the largest error is told.
    """
    from gguf_ext.export import export_gguf

    report = export_gguf(model, out, overwrite=overwrite, **options)

    def show() -> None:
        types = ", ".join(f"{count} {name}" for name, count in sorted(report.types.items()))
        parts = f"{len(report.parts)} parts, " if report.parts else ""
        click.echo(
            f"{report.path}: {parts}{report.bytes / 1e6:.1f} MB in {report.seconds:g} s, {report.architecture}, {types}"
        )
        equal = "bit-equal" if report.exact else f"equal but for rounding, by {report.largest_error:.3g} at most"
        click.echo(
            f"verified: {report.verified} tensors {equal}; {report.pruned} pruned weights all 0; "
            f"tokenizer {report.tokenizer}"
        )
        _show_unchecked(report.unchecked)

    emit(as_json, report.as_dict(), show)


@click.command(
    "gguf-lora",
    epilog=examples(
        "sqft export gguf-lora adapters/math-heuristic --out math.gguf",
        "sqft export gguf-lora adapters/math-heuristic --base models/sparse --out math.gguf --json",
        "llama-cli -m sparse.gguf --lora math.gguf",
    ),
)
@click.argument("adapter", type=click.Path())
@click.option("--out", required=True, type=click.Path(), metavar="FILE.gguf", help="Where to write. Must not exist.")
@click.option("--base", type=click.Path(), metavar="MODEL", help="Folder of the base. Default: the adapter's own.")
@overwrite_option
@json_option
def lora_command(adapter: str, out: str, base: str | None, overwrite: bool, as_json: bool) -> None:
    """Write a dense ADAPTER for llama.cpp.

    ADAPTER is a plain LoRA, such as `sqft extract` makes of a dense one. Masked and quantization-aware adapters are
    merged instead.
    """
    from gguf_ext.lora.export import export_lora

    report = export_lora(adapter, out, base=base, overwrite=overwrite)
    ranks = ", ".join(f"{count} of rank {rank}" for rank, count in report.ranks.items())
    line = f"{report.path}: {report.bytes / 1e6:.1f} MB, {report.architecture}, {report.modules} modules ({ranks})"
    emit(as_json, report.as_dict(), lambda: click.echo(line))


@click.command(
    "verify",
    epilog=examples(
        "sqft verify merged-int4 model.gguf",
        "sqft verify merged model-f16.gguf --rounding allow --json",
        "sqft verify merged model-f32.gguf --logits --text prose.txt",
    ),
)
@click.argument("model", type=click.Path())
@click.argument("file", type=click.Path(), metavar="FILE.gguf")
@click.option(
    "--rounding",
    default="refuse",
    metavar="refuse|allow",
    show_default=True,
    help="allow: weights that the file holds rounded to its types are no difference.",
)
@click.option("--logits", is_flag=True, help="Also run both on a text: KL divergence, top-1 agreement, perplexity.")
@click.option(
    "--text", type=click.Path(), metavar="FILE", help="For --logits. Default: held-out text that Python ships."
)
@click.option(
    "--max-tokens", type=click.IntRange(min=2), default=1024, show_default=True, help="Of the text, for --logits."
)
@json_option
@click.pass_context
def verify_command(
    ctx: click.Context,
    model: str,
    file: str,
    rounding: str,
    logits: bool,
    text: str | None,
    max_tokens: int,
    as_json: bool,
) -> None:
    """Compare MODEL with FILE.gguf.

    Compared are every weight, every hyper-parameter and the tokenizer, from both sides; of a file in parts, give the
    first. Exit code 1 where anything differs; logits, which llama.cpp computes with activations of 8 bits, are told.
    """
    from gguf_ext.verify.tensors import verify_gguf
    from gguf_ext.write.transcode import check_choice

    check_choice("rounding", rounding, ("refuse", "allow"))
    if text is not None and not logits:
        raise click.UsageError("--text needs --logits: add it, or leave --text out")
    prose = _prose(text) if logits else ""
    report = verify_gguf(model, file)
    result = report.as_dict()
    if logits:
        from gguf_ext.verify.logits import compare_logits

        result["logits"] = compare_logits(model, file, prose, max_tokens).as_dict()

    def show() -> None:
        if report.differences:
            table(["name", "difference"], [(item.name, item.what) for item in report.differences])
        click.echo(f"{report.equal - report.rounded} of {report.tensors} tensors bit-equal")
        if report.rounded:
            click.echo(f"{report.rounded} rounded to their type in the file, by {report.largest_error:.3g} at most")
        click.echo(f"{report.pruned - report.pruned_nonzero} of {report.pruned} pruned weights are 0")
        click.echo(f"tokenizer {report.tokenizer}")
        _show_unchecked(report.unchecked)
        if logits:
            _show_logits(result["logits"])
        click.echo("equal" if report.exact else "equal but for rounding" if report.ok else "different")

    emit(as_json, result, show)
    if not (report.ok if rounding == "allow" else report.exact):
        ctx.exit(1)


def _show_unchecked(names: list[str]) -> None:
    if names:
        click.echo(f"compared with nothing: {', '.join(names)}")


def _prose(text: str | None) -> str:
    from sqft_plugins.compress.calibration import builtin_text, read_texts

    return "\n\n".join(read_texts(text, "--text") if text else builtin_text("heldout"))


def _show_logits(found: dict[str, Any]) -> None:
    cut = "cut alike by both" if found["same_tokens"] else "CUT DIFFERENTLY by llama.cpp"
    click.echo(f"{found['tokens']} tokens of text, {cut}; the file against the model in float32:")
    click.echo(
        f"KL divergence mean {found['mean_kl']:.3g}, p99 {found['p99_kl']:.3g}; top-1 agreement "
        f"{found['top1']:.1%}; largest |dlogit| {found['largest']:.3g}"
    )
    click.echo(f"perplexity {found['perplexity_model']:.4f} (model), {found['perplexity_file']:.4f} (file)")
