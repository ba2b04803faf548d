"""sqft train: an elastic adapter over a sparse base."""

from __future__ import annotations

import click

from sqft_plugins.cli.common import emit, examples, json_option, out_option, overwrite_option


@click.command(
    epilog=examples(
        "sqft train models/gemma-50 --data train.jsonl --rank 32 --rank-choices 32,24,16 --out adapters/math",
        "sqft train models/gemma-50 --data train.jsonl --text-fraction 0.2 --steps 300 --out adapters/math",
        "sqft train models/gemma-50 --data chat.jsonl --epochs 3 --eval-fraction 0.05 --keep best --out adapters/chat",
        "sqft train models/gemma-50 --data chat.jsonl --epochs 3 --checkpoint-every 200 --packing --out adapters/chat",
        "sqft train models/gemma-50-int4 --data train.jsonl --quantization-aware --out adapters/math-qa",
        "sqft train models/gemma-50 --data d.jsonl --quantization-aware --grid models/gemma-50-int4 --out adapters/qa",
        "sqft train models/gemma-50 --data train.jsonl --tuner lora --rank 16 --alpha 32 --out adapters/plain --json",
    )
)
@click.argument("model", type=click.Path())
@click.option(
    "--data",
    required=True,
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="JSONL: on each line prompt and completion, messages (a chat), or text. Repeatable.",
)
@click.option("--eval-data", multiple=True, type=click.Path(), metavar="FILE", help="Held-out examples. Repeatable.")
@click.option("--tuner", default="sqft", show_default=True, help="The adapter type; `sqft plugins` lists them.")
@click.option("--rank", default=32, show_default=True, help="The rank of the super-adapter.")
@click.option(
    "--rank-choices", metavar="R,R,…", help="The search space of elastic ranks. Without it the rank is fixed."
)
@click.option("--share-rank", type=click.Choice(["layer", "module"]), default="layer", show_default=True)
@click.option("--alpha", default=64.0, show_default=True, help="The scaling is alpha / rank.")
@click.option("--dropout", default=0.0, show_default=True)
@click.option("--dense", is_flag=True, help="Do not mask the delta: trains like LoRA, but a merge fills the zeros.")
@click.option(
    "--quantization-aware", is_flag=True, help="Train through the INT4 grid of MODEL, so that a merge is INT4 again."
)
@click.option(
    "--grid", type=click.Path(), metavar="DIR", help="With --quantization-aware over a float MODEL: its INT4 folder."
)
@click.option(
    "--target-modules", metavar="NAME,…", help="Default: q_proj,k_proj,v_proj,up_proj,down_proj (the paper's)."
)
@click.option("--steps", type=int, help="Optimizer steps. Default: 100.")
@click.option("--epochs", type=float, help="Passes over the data, in place of --steps.")
@click.option("--batch-size", default=16, show_default=True, help="Examples of a step, over all processes.")
@click.option(
    "--gradient-accumulation", default=1, show_default=True, help="Parts of a batch, one after the other: less memory."
)
@click.option("--learning-rate", default=3e-4, show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "linear", "constant"]),
    default="cosine",
    show_default=True,
    help="Of the learning rate, after the warm-up.",
)
@click.option("--warmup-fraction", default=0.05, show_default=True, help="Share of the steps.")
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option("--max-gradient-norm", default=1.0, show_default=True, help="Larger gradients are clipped; 0: none.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Of the base; auto: what is fast here.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Compute activations twice instead of keeping them.")
@click.option("--packing", is_flag=True, help="Several examples in one row, without seeing each other: less padding.")
@click.option(
    "--text-fraction", default=0.0, show_default=True, help="Share of general text in each batch, against forgetting."
)
@click.option("--text", type=click.Path(), metavar="FILE", help="The general text. Default: what Python ships.")
@click.option("--max-length", default=512, show_default=True, help="Tokens of the longest example.")
@click.option(
    "--long",
    type=click.Choice(["error", "drop"]),
    default="error",
    show_default=True,
    help="What becomes of longer ones.",
)
@click.option("--chat-template", type=click.Path(), metavar="FILE", help="Jinja, in place of the tokenizer's own.")
@click.option("--eval-fraction", default=0.0, show_default=True, help="Hold out this share of --data.")
@click.option("--eval-every", type=int, metavar="N", help="Steps between evaluations. Default: a tenth of the steps.")
@click.option(
    "--keep",
    type=click.Choice(["last", "best"]),
    default="last",
    show_default=True,
    help="Which adapter is written: of the last step, or with the smallest held-out loss.",
)
@click.option(
    "--checkpoint-every", type=int, metavar="N", help="Save every N steps; started again, a killed run goes on."
)
@click.option("--tensorboard", type=click.Path(), metavar="DIR", help="Log for TensorBoard.")
@click.option("--seed", default=0, show_default=True)
@out_option
@overwrite_option
@json_option
def command(
    model,
    data,
    eval_data,
    tuner,
    rank,
    rank_choices,
    share_rank,
    alpha,
    dropout,
    dense,
    quantization_aware,
    grid,
    target_modules,
    **options,
) -> None:
    """Tune an elastic adapter over MODEL.

    It learns the completions of --data, of a chat what the assistant says; the base is not changed.

    OUT holds the adapter as PEFT saves it, a README on how to load it, and the losses (training.json, loss.png).
    """
    from sqft_plugins.compress.calibration import calibration_texts
    from sqft_plugins.tune import AdapterSettings, TrainSettings
    from sqft_plugins.tune.arguments import is_main_process
    from sqft_plugins.tune.data import read_examples, text_examples
    from sqft_plugins.tune.train import train_adapter

    adapter = {
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "share_rank": share_rank,
        "sparse": not dense,
        "quantization_aware": quantization_aware,
        "grid": grid,
        "rank_choices": _ranks(rank_choices),
    }
    if target_modules is not None:
        adapter["target_modules"] = [name.strip() for name in target_modules.split(",")]
        if not all(adapter["target_modules"]):
            raise click.UsageError(f"--target-modules {target_modules!r} has an empty name: write it as q_proj,v_proj")
    settings = AdapterSettings.make(adapter)
    given = {key: options[key] for key in TrainSettings.model_fields if options.get(key) is not None}
    training = TrainSettings.make(given)
    text = text_examples(calibration_texts(options["text"])) if training.text_fraction else []
    report = train_adapter(
        model,
        options["out"],
        [example for path in data for example in read_examples(path)],
        settings,
        training,
        tuner=tuner,
        text=text,
        eval_examples=[example for path in eval_data for example in read_examples(path, "--eval-data")],
        overwrite=options["overwrite"],
    )
    if is_main_process():
        emit(options["as_json"], report, lambda: _show(report))


def _ranks(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise click.UsageError(f"--rank-choices {text!r} is no list of ranks: write it as 32,24,16") from error


def _show(report) -> None:
    click.echo(
        f"{report['out']}: {report['trained_parameters'] / 1e6:.2f} M parameters tuned in {report['seconds']:.0f} s, "
        f"loss {report['losses'][0]:.3f} → {report['losses'][-1]:.3f}"
    )
    if report["evaluations"]:
        kept = next(row for row in report["evaluations"] if row["step"] == report["kept_step"])
        click.echo(f"held out: {report['evaluations'][0]['loss']:.3f} → {kept['loss']:.3f} (step {kept['step']})")
