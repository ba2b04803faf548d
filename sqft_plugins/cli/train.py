"""sqft train: an elastic adapter over a sparse base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from sqft_plugins.cli.verb import Found, Output, verb
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import MODEL, MODEL_NAME
from sqft_plugins.tune.settings import AdapterSettings, TrainInputs, TrainSettings


class TrainOutput(Output):
    base: str | None = option(
        None, "With a .gguf MODEL: its float model, to learn more over.", MODEL_NAME, metavar="DIR"
    )


@verb(
    "sqft train models/gemma-50 --data train.jsonl --rank 32 --rank-choices 32,24,16 --out adapters/math",
    "sqft train models/gemma-50 --data train.jsonl --text-fraction 0.2 --steps 300 --out adapters/math",
    "sqft train models/gemma-50 --data chat.jsonl --epochs 3 --eval-fraction 0.05 --keep best --out adapters/chat",
    "sqft train models/gemma-50 --data chat.jsonl --epochs 3 --checkpoint-every 200 --packing --out adapters/chat",
    "sqft train models/gemma-50-int4 --data train.jsonl --quantization-aware --out adapters/math-qa",
    "sqft train models/gemma-50 --data d.jsonl --quantization-aware --grid models/gemma-50-int4 --out adapters/qa",
    "sqft train gemma-Q4_K_M.gguf --data train.jsonl --out adapters/mine           # the very file that runs",
    "sqft train gemma-Q4_K_M.gguf --init-adapter adapters/lora --steps 0 --data train.jsonl --out adapters/mine",
    "sqft train models/gemma-50 --data train.jsonl --tuner lora --rank 16 --alpha 32 --out adapters/plain --json",
    inputs=TrainInputs,
    adapter=AdapterSettings,
    training=TrainSettings,
    output=TrainOutput,
)
@click.argument("model", type=MODEL)
def command(
    model: str, inputs: TrainInputs, adapter: AdapterSettings, training: TrainSettings, output: TrainOutput
) -> Found | None:
    """Tune an elastic adapter over MODEL, a folder or a .gguf file.

    It learns the completions of --data, of a chat what the assistant says; the base is not changed.

    OUT holds the adapter as PEFT saves it, a README on how to load it, and the losses (training.json, loss.png).
    """
    data, eval_data = inputs.examples("data", "--data"), inputs.examples("eval_data", "--eval-data")
    text = inputs.general_text(training)
    training.check_run(bool(eval_data))
    from sqft_plugins.tune.arguments import is_main_process
    from sqft_plugins.tune.train import train_adapter

    report = train_adapter(
        model,
        output.out,
        data,
        adapter,
        training,
        tuner=inputs.tuner,
        text=text,
        eval_examples=eval_data,
        overwrite=output.overwrite,
        float_base=output.base,
    )
    return Found(report, _text(report)) if is_main_process() else None


def _text(report: Mapping[str, Any]) -> str:
    from sqft_plugins.compress.coverage import describe

    return f"{_tuned(report)}\n{describe(report['coverage'])}"


def _tuned(report: Mapping[str, Any]) -> str:
    parameters = f"{report['out']}: {report['trained_parameters'] / 1e6:.2f} M parameters"
    if not report["losses"]:
        done = "settled" if report["adapter"].get("rounding") == "compensated" else "taken over"
        return f"{parameters} of {report['adapter']['init_adapter']}, {done} in {report['seconds']:.0f} s"
    tuned = (
        f"{parameters} tuned in {report['seconds']:.0f} s, loss {report['losses'][0]:.3f} → {report['losses'][-1]:.3f}"
    )
    if not report["evaluations"]:
        return tuned
    kept = next(row for row in report["evaluations"] if row["step"] == report["kept_step"])
    return f"{tuned}\nheld out: {report['evaluations'][0]['loss']:.3f} → {kept['loss']:.3f} (step {kept['step']})"
