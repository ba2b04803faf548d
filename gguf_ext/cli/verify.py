"""`sqft verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import click
from pydantic import model_validator

from gguf_ext.cli.export import unchecked_line
from gguf_ext.parts import check_file
from gguf_ext.settings import check_choice
from sqft_plugins.checkpoint.hub import check_folder
from sqft_plugins.cli.common import table
from sqft_plugins.cli.verb import Found, verb
from sqft_plugins.errors import SQFTError
from sqft_plugins.settings import Settings, option
from sqft_plugins.settings.checked import ADAPTER_FOLDER, MODEL, CheckedPath


class VerifySettings(Settings):
    rounding: str = option(
        "refuse",
        "allow: weights that the file holds rounded to its types are no difference.",
        metavar="refuse|allow",
    )
    logits: bool = option(False, "Also run both on a text: KL divergence, top-1 agreement, perplexity.")
    text: str | None = option(None, "For --logits. Default: held-out text that Python ships.", "file", metavar="FILE")
    max_tokens: int = option(1024, "Of the text, for --logits.", ge=2)
    adapter: str | None = option(
        None,
        "For a MODEL that is a GGUF file: also prove that llama.cpp dequantizes the weights of its last training step.",
        ADAPTER_FOLDER,
        "file",
        metavar="DIR",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_choice("rounding", self.rounding)
        if self.text is not None and not self.logits:
            raise SQFTError("--text needs --logits: add it, or leave --text out")
        return self


def _check_other(path: str, argument: str) -> None:
    check_folder(path) if Path(path).is_dir() else check_file(path, argument)


@verb(
    "sqft verify merged-int4 model.gguf",
    "sqft verify merged model-f16.gguf --rounding allow --json",
    "sqft verify merged model-f32.gguf --logits --text prose.txt",
    "sqft verify model-Q4_K_M.gguf mine-Q4_K_M.gguf --adapter adapters/mine",
    "sqft verify model-awq mine-awq",
    name="verify",
    settings=VerifySettings,
)
@click.argument("model", type=MODEL)
@click.argument("file", type=CheckedPath(_check_other), metavar="FILE.gguf")
def verify_command(model: str, file: str, settings: VerifySettings) -> Found:
    """Compare MODEL with FILE.gguf.

    Compared are every weight, every hyper-parameter and the tokenizer, from both sides; of a file in parts, give the
    first. Exit code 1 where anything differs; differences of logits, which llama.cpp computes with activations of 8
    bits, are reported only.

    Where MODEL is a GGUF file, too, FILE.gguf must be that file with an adapter merged in: every byte equal but codes
    of adapted tensors, and the note of the merge. With --adapter the merge is computed again, and what llama.cpp
    dequantizes is compared with it.

    Where FILE.gguf is a quantized folder, MODEL must be the folder that an adapter was merged into: every tensor and
    every file equal but codes, the model card and the stamp.
    """
    if Path(file).is_dir():
        return _verify_folders(model, file, settings)
    base = _as_file(model)
    if base is not None:
        return _verify_merged(base, file, settings)
    if settings.adapter is not None:
        raise SQFTError(f"--adapter {settings.adapter} is for a MODEL that is a GGUF file: leave it out")

    from gguf_ext.verify.tensors import verify_gguf

    prose = _prose(settings.text) if settings.logits else ""
    report = verify_gguf(model, file)
    result = report.as_dict()
    if settings.logits:
        from gguf_ext.verify.logits import compare_logits

        result["logits"] = compare_logits(model, file, prose, settings.max_tokens).as_dict()

    def show() -> None:
        if report.differences:
            table(["name", "difference"], [(item.name, item.what) for item in report.differences])
        click.echo(f"{report.equal - report.rounded} of {report.tensors} tensors bit-equal")
        if report.rounded:
            click.echo(f"{report.rounded} rounded to their type in the file, by {report.largest_error:.3g} at most")
        click.echo(f"{report.pruned - report.pruned_nonzero} of {report.pruned} pruned weights are 0")
        click.echo(f"tokenizer {report.tokenizer}")
        for line in unchecked_line(report.unchecked):
            click.echo(line)
        if settings.logits:
            _show_logits(result["logits"])
        click.echo("equal" if report.exact else "equal but for rounding" if report.ok else "different")

    same = report.ok if settings.rounding == "allow" else report.exact
    return Found(result, show, code=int(not same))


def _as_file(model: str) -> Path | None:
    """The file of a model that is one; None for a folder."""
    if Path(model).is_dir():
        return None
    from sqft_plugins.model_files import reader_of

    reader = reader_of(model)
    return None if reader is None else reader.locate(model)


def _verify_merged(base: Path, file: str, settings: VerifySettings) -> Found:
    from gguf_ext.verify.merged import verify_merged

    if settings != VerifySettings(adapter=settings.adapter):
        raise SQFTError(f"options compare FILE.gguf with a model folder, {base} is a file: leave all but --adapter out")
    report, proof = verify_merged(base, file), None
    if settings.adapter is not None and report.ok:
        from gguf_ext.proof import prove_merge

        proof = prove_merge(base, file, settings.adapter)
    differences = [*report.differences, *(proof.differences if proof else [])]

    def show() -> None:
        if differences:
            table(["name", "difference"], [(item.name, item.what) for item in differences])
        for note in report.merges:
            click.echo(f"merged: {note.get('adapter')}")
        click.echo(f"{report.equal} of {report.tensors} tensors byte-equal")
        if report.recoded:
            click.echo(
                f"{report.recoded} with other codes alone: {report.changed:,} of {report.weights:,} "
                f"({report.changed / report.weights:.2%})"
            )
        if proof is not None:
            click.echo(
                f"{proof.equal:,} of {proof.weights:,} weights of {proof.modules} modules: ggml dequantizes the bits "
                "of the last training step"
            )
        click.echo("different" if differences else "equal but for codes")

    result = report.as_dict() | ({} if proof is None else {"proof": proof.as_dict()})
    return Found(result, show, code=int(bool(differences)))


def _verify_folders(base: str, merged: str, settings: VerifySettings) -> Found:
    from sqft_plugins.checkpoint.compare import compare_folders

    if settings != VerifySettings():
        raise SQFTError(f"options are for files, {merged} is a folder: leave them out")
    report = compare_folders(base, merged)

    def show() -> None:
        if report.differences:
            table(["name", "difference"], list(report.differences.items()))
        click.echo(f"{report.equal} of {report.tensors} tensors byte-equal")
        if report.recoded:
            click.echo(
                f"{report.recoded} with other codes alone: {report.changed:,} of {report.weights:,} "
                f"({report.changed / report.weights:.2%})"
            )
        click.echo("equal but for codes" if report.ok else "different")

    return Found(report.as_dict(), show, code=int(not report.ok))


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
