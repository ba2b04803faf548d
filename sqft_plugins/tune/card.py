"""The adapter's README: how to load it, what it is, how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqft_plugins.checkpoint.card import hub_id
from sqft_plugins.progress import say

TEMPLATE = """---
library_name: peft
{base_model}tags: [sqft, lora, sparse]
---

# {tuner} adapter over {base}

```python
import peft_ext  # first: it teaches PEFT the adapter type SQFT
from peft import AutoPeftModelForCausalLM
{imports}
model = AutoPeftModelForCausalLM.from_pretrained("PATH OF THIS FOLDER"{options})
model.set_active_rank("median")  # any rank of the search space, "max", "min"
```

| | |
|---|---|
| pipeline | {pipeline} |
| ranks | {ranks} |
| alpha | {alpha} (the scaling is alpha / {rank} at every rank) |
| merge | {merge} |
| target modules | {targets} |
| trained parameters | {parameters:,} |
| steps × batch, learning rate | {steps} × {batch}, {rate:g} |
| loss, first → last | {first:.3f} → {last:.3f} |{held_out}
| seconds | {seconds:.0f} |
"""


def write_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes README.md in place of PEFT's empty form."""
    adapter, training, losses = report["adapter"], report["training"], report["losses"] or [float("nan")]
    elastic = report["tuner"] == "sqft"
    choices = adapter["rank_choices"] or [adapter["rank"]]
    targets = adapter["target_modules"]
    pipeline, merge = describe(report)
    int4 = report["base_is_int4"]
    text = TEMPLATE.format(
        base=report["base"],
        base_model="" if (hub := hub_id(report["base"])) is None else f"base_model: {hub}\n",
        tuner=report["tuner"],
        ranks=", ".join(map(str, choices)) if elastic else adapter["rank"],
        rank=adapter["rank"],
        alpha=adapter["alpha"],
        imports="from transformers import CompressedTensorsConfig\n" if int4 else "",
        options=", quantization_config=CompressedTensorsConfig(dequantize=True)" if int4 else "",
        pipeline=pipeline,
        merge=merge,
        targets=targets if isinstance(targets, str) else ", ".join(targets),
        parameters=report["trained_parameters"],
        steps=training["steps"],
        batch=training["batch_size"],
        rate=training["learning_rate"],
        first=losses[0],
        last=losses[-1],
        held_out=_held_out(report),
        seconds=report["seconds"],
    )
    if not elastic:
        text = "\n".join(
            line for line in text.split("\n") if not line.startswith(("import peft_ext", "model.set_active"))
        )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _held_out(report: Mapping[str, Any]) -> str:
    """A line of the table, where there are held-out examples: the loss of the adapter that is here."""
    kept = [row for row in report.get("evaluations", ()) if row["step"] == report["kept_step"]]
    if not kept:
        return ""
    what = "best" if report["training"]["keep"] == "best" else "last"
    row = kept[-1]
    return f"\n| loss of {report['held_out']} held-out examples | {row['loss']:.3f} ({what}, step {row['step']}) |"


def describe(report: Mapping[str, Any]) -> tuple[str, str]:
    """The paper's name of what was done, and what a merge of it gives."""
    adapter, int4 = report["adapter"], report["base_is_int4"]
    if report["tuner"] == "sqft" and adapter["quantization_aware"]:
        beside = "" if int4 else f", through the grid of {adapter['grid']}"
        return f"QA-SparsePEFT{beside}", f"`sqft merge {report['base']}` writes INT4 again: zeros, scales and mask stay"
    if report["tuner"] == "sqft" and adapter["sparse"]:
        return "SparsePEFT", f"`sqft merge {report['base']}` keeps every zero of the base"
    elastic = bool(adapter["rank_choices"])
    if int4:
        return "SQFT" if elastic else "LoRA over INT4", "none: the adapter stays beside the INT4 base"
    return "Shears" if elastic else "LoRA", "fills the zeros of the base, so it stays unmerged"


def plot_losses(losses: Sequence[float], file: Path, evaluations: Sequence[Mapping[str, Any]] = ()) -> None:
    """The loss of every step as a picture, smoothed, with that of the held-out examples; without matplotlib a note
    says how to get it."""
    if find_spec("matplotlib") is None:
        say("no loss.png: run pip install 'sqft-plugins[plot]'")
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 3.5), layout="constrained")
    steps = range(1, len(losses) + 1)
    axis.plot(steps, losses, color="#4c72b0", alpha=0.35, linewidth=1, label="a step's batch")
    axis.plot(steps, smoothed(losses), color="#4c72b0", label="smoothed")
    for name, label, marker in (("loss", "held out", "o-"), ("loss_at_max_rank", "held out, largest rank", "s--")):
        points = [(row["step"], row[name]) for row in evaluations if name in row]
        if points:
            axis.plot(*zip(*points, strict=True), marker, color="#c44e52", markersize=4, linewidth=1, label=label)
    axis.set(xlabel="step", ylabel="loss at the learned tokens")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean of each value and those around it: a window of about a tenth of them, cut at the ends."""
    half = max(1, len(values) // 20)
    windows = [values[max(0, index - half) : index + half + 1] for index in range(len(values))]
    return [sum(window) / len(window) for window in windows]
