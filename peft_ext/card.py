"""The README that `save_pretrained` leaves beside an SQFT adapter, in place of PEFT's empty form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CardData, ModelCard
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from sqft_plugins.checkpoint.card import hub_id

if TYPE_CHECKING:
    from peft_ext.config import SQFTConfig

FORM = "[More Information Needed]"
"""What PEFT's own card is full of; one with it at the top was written by nobody."""
IMPORT = "import peft_ext  # first: it teaches PEFT the adapter type SQFT"

TEMPLATE = """```python
{code}
```

| | |
|---|---|
| base | {base} |
| pipeline | {pipeline} |
| ranks | {ranks} |
| alpha | {alpha} (the scaling is {scaling} at every rank) |
| target modules | {targets} |
| parameters | {parameters} |
| merge | {merge} |
"""


def write_card(folder: Path, config: SQFTConfig) -> None:
    """Writes how to load the adapter, and what it is, into folder/README.md: in place of PEFT's form, or below a text
    that has no word of it (TRL's). A text with `import peft_ext` stays as it is, and a folder without the adapter's
    weights gets none."""
    if not any((folder / name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        return
    file = folder / "README.md"
    card = ModelCard.load(file) if file.exists() else ModelCard("")
    if "import peft_ext" in card.text:
        return
    if not card.text.strip() or FORM in card.text[:2000]:
        card.text = f"\n# SQFT adapter{_over(config)}\n\n{describe(folder, config)}"
    else:
        card.text = f"{card.text.rstrip()}\n\n## Loading this adapter\n\n{describe(folder, config)}"
    _fill_data(card.data, config)
    card.save(file)


def describe(folder: Path, config: SQFTConfig) -> str:
    """The lines that load the adapter, and the table of what it is."""
    pipeline, merge = _pipeline(config)
    targets = config.target_modules or []
    root = "√" if config.use_rslora else ""
    return TEMPLATE.format(
        code="\n".join(_code(config)),
        base=config.base_model_name_or_path or "not recorded",
        pipeline=pipeline,
        ranks=", ".join(map(str, config.rank_choices or sorted({config.r, *(config.rank_pattern or {}).values()}))),
        alpha=config.lora_alpha,
        scaling=f"alpha / {root}{config.r}" + (", other where alpha_pattern says so" if config.alpha_pattern else ""),
        targets=targets if isinstance(targets, str) else ", ".join(sorted(targets)),
        parameters=_parameters(folder / SAFETENSORS_WEIGHTS_NAME),
        merge=merge,
    )


def _over(config: SQFTConfig) -> str:
    return f" over {config.base_model_name_or_path}" if config.base_model_name_or_path else ""


def _code(config: SQFTConfig) -> list[str]:
    int4 = (config.grid_stamp or {}).get("base") == "int4"
    lines = ["from transformers import CompressedTensorsConfig"] if int4 else []
    options = ", quantization_config=CompressedTensorsConfig(dequantize=True)" if int4 else ""
    if config.task_type == "CAUSAL_LM" and config.base_model_name_or_path:
        lines = ["from peft import AutoPeftModelForCausalLM", *lines, ""]
        lines.append(f'model = AutoPeftModelForCausalLM.from_pretrained("PATH OF THIS FOLDER"{options})')
    else:
        loading = f"  # loaded with{options[1:]}" if int4 else ""
        lines = ["from peft import PeftModel", *lines, ""]
        lines.append(f'model = PeftModel.from_pretrained(base, "PATH OF THIS FOLDER"){loading}')
    if config.rank_choices:
        lines.append('model.set_active_rank("median")  # any of the ranks below, "max", "min", or one per module')
    return [IMPORT, *lines]


def _pipeline(config: SQFTConfig) -> tuple[str, str]:
    """The paper's name of the method, and what a merge of it gives."""
    if config.quantization_aware:
        through = f", through the grid of {config.grid}" if config.grid else ""
        return f"QA-SparsePEFT{through}", "`sqft merge` writes INT4 again: zeros, scales and mask stay"
    if config.sparse:
        return "SparsePEFT", "keeps every zero of the base"
    elastic = "dense adapter, elastic ranks" if config.rank_choices else "dense adapter (LoRA)"
    return elastic, "fills the zeros of a sparse base: keep it unmerged"


def _parameters(file: Path) -> str:
    try:
        with safe_open(file, framework="pt") as tensors:
            sizes = [math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return "in another format"
    return f"{sum(sizes):,} in {len(sizes)} tensors"


def _fill_data(data: CardData, config: SQFTConfig) -> None:
    """library_name, tags and base_model of the YAML head; what else is there stays. The hub refuses a card whose base
    is not one of its own: PEFT's path, or empty name, of a local base is taken out of the head; the text has it."""
    data["library_name"] = "peft"
    data["tags"] = sorted({"sqft", *filter(_is_of_the_hub, data.get("tags") or [])})
    there: Any = data.get("base_model") or []
    named = [config.base_model_name_or_path or "", *([there] if isinstance(there, str) else there)]
    known = list(dict.fromkeys(base for base in map(hub_id, named) if base))
    data.pop("base_model", None)
    if known:
        data["base_model"] = known[0] if len(known) == 1 else known


def _is_of_the_hub(tag: str) -> bool:
    """False for PEFT's `base_model:adapter:NAME` where NAME is empty or a path."""
    kind, _, name = tag.rpartition(":")
    return not kind.startswith("base_model") or hub_id(name) == name
