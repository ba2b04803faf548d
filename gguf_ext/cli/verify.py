"""`sqft verify`."""

from __future__ import annotations

from typing import Any

import click

from gguf_ext.cli.export import show_unchecked
from gguf_ext.settings import check_choice
from sqft_plugins.cli.common import emit, examples, json_option, table
from sqft_plugins.settings.checked import FILE, MODEL_FOLDER


@click.command(
    "verify",
    epilog=examples(
        "sqft verify merged-int4 model.gguf",
        "sqft verify merged model-f16.gguf --rounding allow --json",
        "sqft verify merged model-f32.gguf --logits --text prose.txt",
    ),
)
@click.argument("model", type=MODEL_FOLDER)
@click.argument("file", type=FILE, metavar="FILE.gguf")
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
    first. Exit code 1 where anything differs; differences of logits, which llama.cpp computes with activations of 8
    bits, are reported only.
    """
    from gguf_ext.verify.tensors import verify_gguf

    check_choice("rounding", rounding)
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
        show_unchecked(report.unchecked)
        if logits:
            _show_logits(result["logits"])
        click.echo("equal" if report.exact else "equal but for rounding" if report.ok else "different")

    emit(as_json, result, show)
    if not (report.ok if rounding == "allow" else report.exact):
        ctx.exit(1)


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
