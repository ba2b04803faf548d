"""SQFT as a PEFT tuner: `get_peft_model(model, SQFTConfig(...))`.

Importing this package registers the adapter type with PEFT; it must come before an SQFT adapter is loaded.

    config.py          SQFTConfig: a LoraConfig with a mask and an elastic rank
    fields.py          the kinds and ranges of its fields
    model.py           SQFTModel: puts the layers into a model, sets the rank, merges
    layer.py           Linear: the adapted layer
    variant.py         what PEFT's own loops call for it
    any_model.py       ranks and merging where there is no PeftModel

the mathematics (the formula W' = W + s · (B @ A) ⊙ M, with its dtypes, is sqft_plugins/formula.py)
    functional.py      the layer that is trained, with its gradients, and the merge into a float weight
    requantize.py      the merge into INT4 codes, by its public name

the state of a layer
    ranks.py           the rank in force, in four situations
    drawing.py         the hooks that draw it
    merged_cache.py    the merged weight that evaluation caches
    saved_base.py      the base weight that a merge saves

what an adapter was trained over
    grids.py           the INT4 folder under a quantization-aware adapter
    provenance.py      mask hash, grid stamp and settings, found and compared
    saving.py          what is written of an adapter, so that it loads again
    card.py            the README.md beside it

refusals
    checks.py          layers, merges and combinations that cannot work
    bypass/            layers whose weight the model reads past an adapter
    other_tuners.py    adapters of other types in one model
    loading_guards.py  tensors under a name that is in use
    unchecked.py       tensors without a configuration
    rollback.py        puts a model back where an adapter was refused

the ways in
    registry.py        what PEFT keeps private
    tuner.py           the tuners of `sqft train`, `extract` and `merge`
    plugin.py          the hooks of `sqft`
"""

from peft_ext import loading_guards, registry
from peft_ext.any_model import merge_adapter, merge_and_unload, set_active_rank, unmerge_adapter
from peft_ext.card import complete_card
from peft_ext.config import SQFTConfig
from peft_ext.layer import Linear
from peft_ext.model import SQFTModel

registry.register(SQFTConfig, SQFTModel)
registry.wrap(registry.PeftModel, "create_or_update_model_card", complete_card)
loading_guards.guard()

__all__ = [
    "Linear",
    "SQFTConfig",
    "SQFTModel",
    "merge_adapter",
    "merge_and_unload",
    "set_active_rank",
    "unmerge_adapter",
]
