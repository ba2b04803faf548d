"""The card of an adapter: how to load it, what it is, how it was made.

PEFT saves adapters, its users' own and those of `sqft train`; `complete_card` adds our lines to the card that PEFT or
the user wrote. `sqft train` then writes the card anew with the facts of the run, by `write_training_card`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData

from sqft_plugins._version import VERSION
from sqft_plugins.cards import CARD, hub_id, render

FORM = "[More Information Needed]"
"""What PEFT's own card is full of. A card with it at the top was written by nobody."""
IMPORT = "import peft_ext"
"""A card with these words tells how to load the adapter already."""
EMPTY = "---\n{}\n---\n"
"""A card without text. For an empty file huggingface_hub logs that it found no metadata."""


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What the card of an adapter is written from.

    sqft_type: the adapter is of PEFT's type SQFT, which `import peft_ext` registers; other types load without it.
    base: name or path of the base model, "" where nobody recorded it.
    base_is_int4: the base is an INT4 folder, which PEFT needs dequantized.
    auto_class: PEFT's AutoPeftModelForCausalLM can load base and adapter together.
    ranks: of the modules; those of the search space where the adapter is elastic, the largest one first.
    rank_choices: the adapter is elastic.
    alpha, scaling: `lora_alpha`, and the formula of the scaling in words.
    sparse: the adapter is masked by the zeros of the base.
    quantization_aware: it was trained through an INT4 grid, that of the folder `grid` if not of the base itself.
    parameters: how many, in words.
    training: more rows of the table, about the run.
    """

    sqft_type: bool
    base: str
    base_is_int4: bool
    auto_class: bool
    ranks: Sequence[int]
    rank_choices: bool
    alpha: float
    scaling: str
    target_modules: Sequence[str] | str
    sparse: bool
    quantization_aware: bool
    grid: str | None
    parameters: str
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> tuple[str, str]:
        """The paper's name of the pipeline, and what a merge of the adapter gives."""
        if self.quantization_aware:
            through = f", through the grid of {self.grid}" if self.grid else ""
            return f"QA-SparsePEFT{through}", "`sqft merge` writes INT4 again: zeros, scales and mask stay"
        if self.sparse:
            return "SparsePEFT", "keeps every zero of the base"
        if self.base_is_int4:
            return "SQFT" if self.rank_choices else "LoRA over INT4", "none: the adapter stays beside the INT4 base"
        pipeline = "Shears (dense adapter, elastic ranks)" if self.rank_choices else "LoRA (dense adapter)"
        return pipeline, "fills the zeros of a sparse base: keep it unmerged"


def describe(facts: AdapterFacts) -> str:
    """The code that loads the adapter, and the table of what it is."""
    pipeline, merge = facts.method
    targets = facts.target_modules
    return render(
        "adapter.md.jinja",
        facts=facts,
        pipeline=pipeline,
        merge=merge,
        targets=targets if isinstance(targets, str) else ", ".join(sorted(targets)),
        versions={"PEFT": version("peft"), "sqft-plugins": VERSION},
    )


def complete_card(folder: Path, facts: AdapterFacts) -> None:
    """Adds how to load the adapter, and what it is, to the README.md in `folder`: in place of PEFT's empty form, or
    below a text that does not say it. A text with `import peft_ext` stays as it is."""
    file = folder / CARD
    content = file.read_text(encoding="utf-8") if file.exists() else EMPTY
    card = ModelCard(content if content.startswith("---") else EMPTY + content)
    if IMPORT in card.text:
        return

    if not card.text.strip() or FORM in card.text[:2000]:
        over = f" over {facts.base}" if facts.base else ""
        card.text = f"\n# SQFT adapter{over}\n\n{describe(facts)}"
    else:
        card.text = f"{card.text.rstrip()}\n\n## Loading this adapter\n\n{describe(facts)}"
    _fill_head(card.data, facts.base)
    card.save(file)


def write_training_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes README.md anew for the adapter that `sqft train` left in `folder`. report: that of the training."""
    name = hub_id(report["base"])
    data = ModelCardData(library_name="peft", base_model=name, tags=["sqft", "lora", "sparse"])
    title = f"# {report['tuner']} adapter over {report['base']}"
    text = f"---\n{data.to_yaml()}\n---\n\n{title}\n\n{describe(_facts_of_training(report))}"
    (folder / CARD).write_text(text, encoding="utf-8")


# --- inside ---


def _facts_of_training(report: Mapping[str, Any]) -> AdapterFacts:
    adapter, training, losses = report["adapter"], report["training"], report["losses"] or [float("nan")]
    sqft_type = report["tuner"] == "sqft"
    rank = adapter["rank"]

    rows = {
        "steps × batch, learning rate": f"{training['steps']} × {training['batch_size']}, "
        f"{training['learning_rate']:g}",
        "loss, first → last": f"{losses[0]:.3f} → {losses[-1]:.3f}",
    }
    # the loss of the adapter that is here, not of the last one that was looked at
    for row in report.get("evaluations", ()):
        if row["step"] == report["kept_step"]:
            which = "best" if training["keep"] == "best" else "last"
            rows[f"loss of {report['held_out']} held-out examples"] = f"{row['loss']:.3f} ({which}, step {row['step']})"
    rows["seconds"] = f"{report['seconds']:.0f}"

    return AdapterFacts(
        sqft_type=sqft_type,
        base=report["base"],
        base_is_int4=report["base_is_int4"],
        auto_class=True,
        ranks=(sqft_type and adapter["rank_choices"]) or [rank],
        rank_choices=bool(adapter["rank_choices"]),
        alpha=adapter["alpha"],
        scaling=f"alpha / {rank}",
        target_modules=adapter["target_modules"],
        sparse=sqft_type and adapter["sparse"],
        quantization_aware=sqft_type and adapter["quantization_aware"],
        grid=None if report["base_is_int4"] else adapter["grid"],
        parameters=f"{report['trained_parameters']:,} trained",
        training=rows,
    )


def _fill_head(data: CardData, base: str) -> None:
    """library_name, tags and base_model; what else the head has stays.

    A base of the hub is named as the hub does. The path of a local base stays as PEFT has written it, and the hub asks
    for another name when the card is pushed.
    """
    data["library_name"] = "peft"
    data["tags"] = sorted({"sqft", *filter(_is_of_the_hub, data.get("tags") or [])})
    there = data.get("base_model") or []
    named = [base, *([there] if isinstance(there, str) else there)]
    known = list(dict.fromkeys(name for name in map(hub_id, named) if name))
    if known:
        data["base_model"] = known[0] if len(known) == 1 else known


def _is_of_the_hub(tag: str) -> bool:
    """False for PEFT's tag `base_model:adapter:NAME` where NAME is empty or a path."""
    kind, _, name = tag.rpartition(":")
    return not kind.startswith("base_model") or hub_id(name) == name
