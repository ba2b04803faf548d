"""sqft recover: a pruned model learns from the dense one."""

from __future__ import annotations

import click

from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.cli.verb import Found, Output, verb
from sqft_plugins.recover.settings import RecoverSettings
from sqft_plugins.settings import option
from sqft_plugins.settings.checked import MODEL_NAME


class DenseModel(Output):
    dense: str = option(..., "The model that MODEL was pruned from.", MODEL_NAME, "model", metavar="MODEL")


@verb(
    "sqft recover models/gemma-50 --dense models/gemma --out models/gemma-50r",
    "sqft recover models/gemma-50 --dense models/gemma --calibration builtin --calibration my-task.jsonl "
    "--out models/gemma-50r",
    "sqft recover models/gemma-50 --dense models/gemma --sequences 2560 --out models/gemma-50r   # the gain goes on",
    settings=RecoverSettings,
    output=DenseModel,
)
@click.argument("model", type=MODEL_NAME)
def command(model: str, settings: RecoverSettings, output: DenseModel) -> Found:
    """Train the kept weights of the pruned MODEL to predict as the dense one does.

    Before tuning or quantizing. The mask stays; of the text no answers are learned, only what the dense model says to
    it, so any text serves, best that of the task and general text together. Both models are in memory. Killed, the
    same command goes on where it was.
    """
    for name in (model, output.dense):
        local_folder(name)
    from sqft_plugins.recover.run import recover_folder

    report = recover_folder(model, output.dense, output.out, settings, overwrite=output.overwrite)
    return Found(
        report,
        f"{report['out']}: {report['divergence_before']:.4f} → {report['divergence_after']:.4f} nats a token from the "
        f"dense model after {report['steps']} steps, {report['seconds']:.0f} s, peak {report['peak_memory_mib']} MiB",
    )
