"""The card of a model folder that this project wrote: its head as the hub reads it, what was done, how to load it in
each runtime. The card of the base was copied along and stays below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from sqft_plugins.cards import CARD, hub_id, render
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.measure import bits_per_weight
from sqft_plugins.progress import say
from sqft_plugins.structure import structure_of_folder

BASE_CARD = "## Card of the base model"
"""The heading above the base's own text."""
OURS = "<!-- sqft-plugins wrote this card down to the base's; a later step writes it anew -->"
KEPT = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag")
"""What the head says of the base and holds for the model that is made of it. The base's results do not."""


def write_model_card(folder: Path) -> None:
    """Writes README.md for the model in `folder`, whose weights, config.json and stamp are there already.

    The README.md that the folder has by now, copied from the base, stays below; of its head, licence and language stay.
    """
    file = folder / CARD
    head, text = _read(file)
    ours = OURS in text
    base_text = text.partition(BASE_CARD)[2] if ours else text

    model = ModelFolder(folder)
    body = _describe(model, base_text.strip())
    data = ModelCardData(**_head(model, head, ours))
    file.write_text(f"---\n{data.to_yaml()}\n---\n{body}", encoding="utf-8")


def _describe(model: ModelFolder, below: str) -> str:
    """The text of the card, without its head. below: the text of the base's card."""
    stamp, int4 = model.stamp, model.grid is not None
    base = Path(stamp.base).name if stamp and stamp.base else str(model.config.get("model_type", "model"))
    facts = [f"{100 * stamp.sparsity:.4g} % sparse"] if stamp and stamp.sparsity else []
    facts += [model.label] if int4 else []

    return render(
        "model.md.jinja",
        ours=OURS,
        title=f"{base}, {' '.join(facts) or 'merged'}",
        masked=stamp is not None,
        rows=list(_rows(model)),
        int4=int4,
        label=model.label,
        conv1d=int4 and bool(structure_of_folder(model.path).transposed),
        base_card=BASE_CARD,
        below=below,
    )


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """(the head, the text) of a card. A card that cannot be read counts as empty, and a note says so."""
    if not file.is_file():
        return {}, ""
    try:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        return card.data.to_dict(), card.text
    except Exception as error:  # YAML's and the hub's own kinds
        say(f"{file.name} of the base cannot be read ({type(error).__name__}): the card begins anew")
        return {}, ""


def _head(model: ModelFolder, base: dict[str, Any], ours: bool) -> dict[str, Any]:
    """The YAML head. base: that of the card in the folder; ours: it is one of ours, so its base_model is the base."""
    stamp, int4 = model.stamp, model.grid is not None
    head = {"pipeline_tag": "text-generation"} | {key: base[key] for key in KEPT if base.get(key)}

    # a base may be sparse by its own account; what is sparse here, the stamp knows
    tags = base.get("tags")
    kept = {tag for tag in tags if isinstance(tag, str)} - {"sparse"} if isinstance(tags, list) else set()
    made = {"sqft"} | ({"sparse"} if stamp else set()) | ({"int4", "compressed-tensors"} if int4 else set())
    head |= {"library_name": "transformers", "tags": sorted(made | kept)}

    name = (hub_id(stamp.base) if stamp else None) or (base.get("base_model") if ours else None)
    if name:
        head["base_model"] = name
        if int4:
            head["base_model_relation"] = "quantized"
        elif stamp and any(step.endswith("-merge") for step in stamp.pipeline):
            head["base_model_relation"] = "finetune"
    return head


def _rows(model: ModelFolder) -> Iterator[tuple[str, str]]:
    """(name, value) of the card's table."""
    stamp, modules = model.stamp, list(model.masks)

    if stamp is not None:
        yield "base", hub_id(stamp.base) or (Path(stamp.base).name if stamp.base else "not recorded")
        yield "steps", " → ".join(stamp.pipeline)
        yield "pruned", f"{100 * stamp.sparsity:.4g} % of the weights of {len(modules)} linear layers"

    if model.grid is not None:
        size = "whole rows" if model.grid.group_size == -1 else f"groups of {model.grid.group_size}"
        symmetry = "symmetric" if model.grid.symmetric else "asymmetric"
        yield "precision", f"{model.grid.label}, {size}, {symmetry}, {model.int4.name}"
    else:
        stored = Counter(str(model.spec(name).dtype).removeprefix("torch.") for name in model.files)
        yield "precision", stored.most_common(1)[0][0]
    if modules:
        yield "bits a weight", f"{bits_per_weight(model, modules):.3g} on disk in these layers, with scales"
    yield "size", f"{model.weight_bytes / 1e6:,.1f} MB"

    if stamp is not None and stamp.ranks:
        counted = Counter(stamp.ranks.values())
        yield "merged ranks", ", ".join(f"{rank} in {number} layers" for rank, number in sorted(counted.items()))
    if stamp is not None:
        yield "mask", f"`sqft/mask.safetensors`, hash {stamp.mask_hash[:16]}…"
        yield "stamp", f"`sqft/stamp.json`, by {stamp.created_by}"
