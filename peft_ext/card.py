"""The README that `save_pretrained` leaves beside an SQFT adapter, in place of PEFT's empty form."""

from __future__ import annotations

import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CardData, ModelCard
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError, safe_open

from peft_ext.registry import peft_type
from sqft_plugins._version import VERSION
from sqft_plugins.checkpoint.card import hub_id

if TYPE_CHECKING:
    from peft_ext.config import SQFTConfig

FORM = "[More Information Needed]"
"""What PEFT's own card is full of; one with it at the top was written by nobody."""
IMPORT = "import peft_ext  # first: it teaches PEFT the adapter type SQFT"

EMPTY = "---\n{}\n---\n"
"""A card without text; for an empty one huggingface_hub logs that it found no metadata."""

TEMPLATE = """Loading it needs `pip install 'sqft-plugins[peft]'`, and the import of `peft_ext`:

```python
{code}
```

It was tuned with [sqft-plugins](https://pypi.org/project/sqft-plugins) (SQFT, [arXiv 2410.03750](https://arxiv.org/abs/2410.03750)).
{method}

| | |
|---|---|
| base | {base} |
| pipeline | {pipeline} |
| ranks | {ranks} |
| alpha | {alpha} (the scaling is {scaling} at every rank) |
| target modules | {targets} |
| parameters | {parameters} |
| merge | {merge} |

To merge it into its base, at any of its ranks: `model.merge_and_unload()` in Python, or
`sqft merge BASE THIS_FOLDER --rank RANK --out FOLDER`.

### Framework versions

- PEFT {peft}
- sqft-plugins {version}
"""

METHOD = {
    "masked": (
        "What the adapter adds is masked by the zeros of the pruned base, so that merged and unmerged model are the "
        "same and every zero stays. Loading checks that the base has the zeros that it was tuned over."
    ),
    "dense": "What the adapter adds is dense, as that of a LoRA: a merge into a pruned base fills its zeros.",
    "elastic": (
        " It is elastic: every smaller rank of its search space is a part of it, to be set after loading without "
        "tuning again."
    ),
}


def write_card(folder: Path, config: SQFTConfig) -> None:
    """Writes how to load the adapter, and what it is, into folder/README.md: in place of PEFT's form, or below a text
    that has no word of it (TRL's). A text with `import peft_ext` stays as it is, and a folder without the adapter's
    weights gets none."""
    if not any((folder / name).exists() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        return
    file = folder / "README.md"
    card = ModelCard(_with_head(file.read_text(encoding="utf-8")) if file.exists() else EMPTY)
    if "import peft_ext" in card.text:
        return
    if not card.text.strip() or FORM in card.text[:2000]:
        card.text = f"\n# SQFT adapter{_over(config)}\n\n{describe(folder, config)}"
    else:
        card.text = f"{card.text.rstrip()}\n\n## Loading this adapter\n\n{describe(folder, config)}"
    _fill_data(card.data, config)
    card.save(file)


def complete_card(model: Any, folder: str) -> None:
    """Puts our lines into the card in `folder`, as PEFT or Trainer has just written it for `model`, where they lack."""
    active = model.active_adapter
    config = model.peft_config.get(active if isinstance(active, str) else active[0])
    if config is not None and config.peft_type == peft_type():
        write_card(Path(folder), config)


def _with_head(text: str) -> str:
    return text if text.startswith("---") else EMPTY + text


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
        method=METHOD["masked" if config.sparse else "dense"] + (METHOD["elastic"] if config.rank_choices else ""),
        peft=version("peft"),
        version=VERSION,
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
    """library_name, tags and base_model of the YAML head; what else is there stays. A base of the hub is named as the
    hub does; the path of a local one stays as PEFT has written it, and the hub asks for another name when the card is
    pushed."""
    data["library_name"] = "peft"
    data["tags"] = sorted({"sqft", *filter(_is_of_the_hub, data.get("tags") or [])})
    there: Any = data.get("base_model") or []
    named = [config.base_model_name_or_path or "", *([there] if isinstance(there, str) else there)]
    known = list(dict.fromkeys(base for base in map(hub_id, named) if base))
    if known:
        data["base_model"] = known[0] if len(known) == 1 else known


def _is_of_the_hub(tag: str) -> bool:
    """False for PEFT's `base_model:adapter:NAME` where NAME is empty or a path."""
    kind, _, name = tag.rpartition(":")
    return not kind.startswith("base_model") or hub_id(name) == name
