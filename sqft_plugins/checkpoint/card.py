"""The model card (README.md) of a folder that this project wrote: its head as the hub reads it, what was done, how to
load it in each runtime. The card of the base is copied along and stays below."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.stamp import Stamp
from sqft_plugins.progress import say
from sqft_plugins.structure import structure_of_folder

CARD = "README.md"
BASE_CARD = "## Card of the base model"
"""The heading above the base's own text."""
OURS = "<!-- sqft-plugins wrote this card down to the base's; a later step writes it anew -->"
KEPT = ("license", "license_name", "license_link", "language", "datasets", "pipeline_tag")
"""What holds for the base and for what is made of it. Its results do not."""

TEMPLATE = """
{ours}

# {title}

{said}

| | |
|---|---|
{rows}

## Loading
In the place of `MODEL`, the path or the hub name of this folder.

**transformers**{needs}
```python
{code}
```

**vLLM**
```
{vllm}
```

**llama.cpp**, where it knows the architecture (`pip install 'sqft-plugins[gguf]'`); every weight stays what it is here
```
sqft export gguf MODEL --out model.gguf
sqft chat model.gguf
```
"""


def write_card(folder: Path) -> None:
    """Writes README.md for the model in `folder`, whose weights, config.json and stamp are there already. What the
    folder's README.md says so far, copied from the base, stays below; of its head, licence and language stay."""
    file = folder / CARD
    head, text = _read(file)
    below = (text.partition(BASE_CARD)[2] if OURS in text else text).strip()
    model = ModelFolder(folder)
    body = describe(model)
    if below:
        body += f"\n{BASE_CARD}\n\n{below}\n"
    data = CardData(**_head(model, head, ours=OURS in text))
    file.write_text(f"---\n{data.to_yaml()}\n---\n{body}", encoding="utf-8")


def describe(model: ModelFolder) -> str:
    """The text of the card, without its head."""
    stamp, int4 = model.stamp, model.grid is not None
    base = Path(stamp.base).name if stamp and stamp.base else str(model.config.get("model_type", "model"))
    facts = [f"{100 * stamp.sparsity:.4g} % sparse"] if stamp and stamp.sparsity else []
    facts += ["INT4"] if int4 else []
    title = f"{base}, {' '.join(facts)}" if facts else f"{base}, merged"
    return TEMPLATE.format(
        ours=OURS,
        title=title,
        said=_said(stamp),
        rows="\n".join(f"| {name} | {value} |" for name, value in _rows(model)),
        needs=" (and `pip install compressed-tensors`)" if int4 else "",
        code="\n".join(_code(model)),
        vllm="vllm serve MODEL" + ("   # dense INT4\nsqft serve MODEL   # sparse INT4 in memory" if int4 else ""),
    )


def hub_id(name: str | None) -> str | None:
    """The name as the hub takes it for a base model: OWNER/NAME or NAME; that of a folder in the hub's own cache. None
    for any other folder: the hub refuses a card that names a path."""
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)/snapshots/", name or "")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    if not name or name.startswith((".", "/", "~")) or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


# --- inside ---


def _read(file: Path) -> tuple[dict[str, Any], str]:
    """(the head, the text) of a card; of one that cannot be read, nothing, and it is said."""
    if not file.is_file():
        return {}, ""
    try:
        card = ModelCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        return card.data.to_dict(), card.text
    except Exception as error:  # YAML's and the hub's own kinds
        say(f"{file.name} of the base cannot be read ({type(error).__name__}): the card begins anew")
        return {}, ""


def _head(model: ModelFolder, base: dict[str, Any], ours: bool) -> dict[str, Any]:
    stamp, int4 = model.stamp, model.grid is not None
    tags = base.get("tags") or []
    made = {"sqft"} | ({"sparse"} if stamp else set()) | ({"int4", "compressed-tensors"} if int4 else set())
    kept = {tag for tag in tags if isinstance(tag, str)} if isinstance(tags, list) else set()
    head = {key: base[key] for key in KEPT if base.get(key)}
    head |= {"library_name": "transformers", "tags": sorted(made | (kept - {"sparse"}))}
    name = hub_id(stamp.base) if stamp else None
    known = name or (base.get("base_model") if ours else None)
    if known:
        head["base_model"] = known
        if int4:
            head["base_model_relation"] = "quantized"
        elif stamp and any(step.endswith("-merge") for step in stamp.pipeline):
            head["base_model_relation"] = "finetune"
    return {"pipeline_tag": "text-generation", **head}


def _said(stamp: Stamp | None) -> str:
    tool = "[sqft-plugins](https://pypi.org/project/sqft-plugins)"
    if stamp is None:
        return f"Merged with {tool}. The adapter was not masked: such a merge fills the zeros of a pruned base."
    return f"Made with {tool}. A pruned weight is exactly 0, and stays so when adapters of SparsePEFT are merged in."


def _rows(model: ModelFolder) -> Iterator[tuple[str, str]]:
    stamp = model.stamp
    modules = list(model.packed_masks)
    if stamp is not None:
        yield "base", hub_id(stamp.base) or (Path(stamp.base).name if stamp.base else "not recorded")
        yield "steps", " → ".join(stamp.pipeline)
        yield "pruned", f"{100 * stamp.sparsity:.4g} % of the weights of {len(modules)} linear layers"
    if model.grid is not None:
        size = "whole rows" if model.grid.group_size == -1 else f"groups of {model.grid.group_size}"
        yield "precision", f"INT4, {size}, {'symmetric' if model.grid.symmetric else 'asymmetric'}, {model.format_name}"
    else:
        stored = Counter(str(model.spec(name).dtype).removeprefix("torch.") for name in model.files)
        yield "precision", stored.most_common(1)[0][0]
    if modules:
        from sqft_plugins.measure import bits_per_weight  # which imports this package

        yield "bits a weight", f"{bits_per_weight(model, modules):.3g} on disk in these layers, with scales"
    yield "size", f"{model.weight_bytes / 1e6:,.1f} MB"
    if stamp is not None and stamp.ranks:
        counted = Counter(stamp.ranks.values())
        yield "merged ranks", ", ".join(f"{rank} in {number} layers" for rank, number in sorted(counted.items()))
    if stamp is not None:
        yield "mask", f"`sqft/mask.safetensors`, hash {stamp.mask_hash[:16]}…"
        yield "stamp", f"`sqft/stamp.json`, by {stamp.created_by}"


def _code(model: ModelFolder) -> list[str]:
    if model.grid is not None and _transposed(model.path):  # compressed-tensors has no INT4 Conv1D
        return [
            "from sqft_plugins.checkpoint import load_model, load_tokenizer",
            "",
            'model = load_model("MODEL")',
            'tokenizer = load_tokenizer("MODEL")',
        ]
    return [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("MODEL", dtype="auto")',
        'tokenizer = AutoTokenizer.from_pretrained("MODEL")',
    ]


def _transposed(folder: Path) -> bool:
    return bool(structure_of_folder(folder).transposed)
