"""The card of an adapter: how to load it, what it is, how it was made.

PEFT saves adapters, its users' own and those of `sqft train`; `complete_card` adds our lines to the card that PEFT or
the user wrote. `sqft train` then writes the card anew with the facts of the run, by `write_training_card`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData
from safetensors import SafetensorError, safe_open

from sqft_plugins._version import VERSION
from sqft_plugins.adapter.folder import CONFIG, WEIGHTS
from sqft_plugins.cards import CARD, hub_id, render
from sqft_plugins.checkpoint.json_object import read_object
from sqft_plugins.model_files import reader_of

FORM = "[More Information Needed]"
"""What PEFT's own card is full of. A card with it at the top was written by nobody."""
IMPORT = "import peft_ext"
"""A card with these words tells how to load the adapter already."""
EMPTY = "---\n{}\n---\n"
"""A card without text. For an empty file huggingface_hub logs that it found no metadata."""


def complete_card(folder: Path, config: Mapping[str, Any]) -> None:
    """Adds how to load the adapter, and what it is, to the README.md in `folder`: in place of PEFT's empty form, or
    below a text that does not say it. A text with `import peft_ext` stays as it is. config: adapter_config.json."""
    file = folder / CARD
    content = file.read_text(encoding="utf-8") if file.exists() else EMPTY
    card = ModelCard(content if content.startswith("---") else EMPTY + content)
    if IMPORT in card.text:
        return

    base = config.get("base_model_name_or_path") or ""
    text = _describe(folder, config, (config.get("grid_stamp") or {}).get("base") == "int4", {})
    if not card.text.strip() or FORM in card.text[:2000]:
        card.text = f"\n# SQFT adapter{f' over {base}' if base else ''}\n\n{text}"
    else:
        card.text = f"{card.text.rstrip()}\n\n## Loading this adapter\n\n{text}"
    _fill_head(card.data, base)
    card.save(file)


def write_training_card(folder: Path, report: Mapping[str, Any]) -> None:
    """Writes README.md anew for the adapter that `sqft train` left in `folder`. report: that of the training."""
    data = ModelCardData(library_name="peft", base_model=hub_id(report["base"]), tags=["sqft", "lora", "sparse"])
    config = read_object(folder / CONFIG, "train it again")
    text = _describe(folder, config, report["base_is_int4"], dict(_training_rows(report)))
    title = f"# {report['tuner']} adapter over {report['base']}"
    (folder / CARD).write_text(f"---\n{data.to_yaml()}\n---\n\n{title}\n\n{text}", encoding="utf-8")


def method(config: Mapping[str, Any], base_is_int4: bool) -> tuple[str, str]:
    """The paper's name of what was done, and what a merge of the adapter gives."""
    elastic = bool(config.get("rank_choices"))
    if file := grids_of(config):
        merge = f"`sqft merge {file} THIS_FOLDER --out NEW.gguf` writes that file with other codes"
        return f"QA-SparsePEFT, through the grids of {file}", merge
    if config.get("quantization_aware"):
        through = f", through the grid of {config['grid']}" if config.get("grid") else ""
        return f"QA-SparsePEFT{through}", "`sqft merge` writes codes on this grid again: zeros, scales and mask stay"
    if config.get("sparse"):
        return "SparsePEFT", "keeps every zero of the base"
    if base_is_int4:
        return "SQFT" if elastic else "LoRA over codes", "none: the adapter stays beside the quantized base"
    pipeline = "Shears (dense adapter, elastic ranks)" if elastic else "LoRA (dense adapter)"
    return pipeline, "fills the zeros of a sparse base: keep it unmerged"


def grids_of(config: Mapping[str, Any]) -> str:
    """The file, such as a GGUF file, through whose grids an adapter was trained; "" for none."""
    name = str(config.get("grid") or config.get("base_model_name_or_path") or "")
    return name if config.get("quantization_aware") and name and reader_of(name) is not None else ""


# --- inside ---


def _describe(folder: Path, config: Mapping[str, Any], base_is_int4: bool, rows: Mapping[str, str]) -> str:
    """The code that loads the adapter, and the table of what it is. rows: more of the table."""
    pipeline, merge = method(config, base_is_int4)
    targets = config.get("target_modules") or []
    file, base = grids_of(config), config.get("base_model_name_or_path") or ""
    base_is_file = bool(base) and reader_of(base) is not None
    return render(
        "adapter.md.jinja",
        config=config,
        sqft_type=config.get("peft_type") == "SQFT",
        base_is_int4=base_is_int4 and not base_is_file,
        file=file,
        base_is_file=base_is_file,
        pipeline=pipeline,
        ranks=config.get("rank_choices") or sorted({config.get("r"), *(config.get("rank_pattern") or {}).values()}),
        targets=targets if isinstance(targets, str) else ", ".join(sorted(targets)),
        parameters=_parameters(folder / WEIGHTS),
        merge=merge,
        rows=rows,
        versions={"PEFT": version("peft"), "sqft-plugins": VERSION},
    )


def _training_rows(report: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    training, losses = report["training"], report["losses"] or [math.nan]
    rate = f"{training['learning_rate']:g}"
    yield "steps × batch, learning rate", f"{training['steps']} × {training['batch_size']}, {rate}"
    yield "loss, first → last", f"{losses[0]:.3f} → {losses[-1]:.3f}"

    # the loss of the adapter that is here, not of the last one that was looked at
    for row in report.get("evaluations", ()):
        if row["step"] == report["kept_step"]:
            which = "best" if training["keep"] == "best" else "last"
            yield f"loss of {report['held_out']} held-out examples", f"{row['loss']:.3f} ({which}, step {row['step']})"
    yield "seconds", f"{report['seconds']:.0f}"


def _parameters(file: Path) -> str:
    try:
        with safe_open(file, framework="pt") as tensors:
            sizes = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return "in another format"
    return f"{sum(sizes):,} in {len(sizes)} tensors"


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
