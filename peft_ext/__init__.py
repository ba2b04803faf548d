"""SQFT as a PEFT tuner: `get_peft_model(model, SQFTConfig(...))`.

Importing this package registers the adapter type with PEFT; it must come before an SQFT adapter is loaded.
"""

from peft_ext import doors, registry
from peft_ext.card import complete_card
from peft_ext.config import SQFTConfig
from peft_ext.layer import Linear
from peft_ext.model import SQFTModel
from peft_ext.models import merge_adapter, merge_and_unload, set_active_rank, unmerge_adapter

registry.register(SQFTConfig, SQFTModel)
registry.after_each_card(complete_card)
doors.guard()

__all__ = [
    "Linear",
    "SQFTConfig",
    "SQFTModel",
    "merge_adapter",
    "merge_and_unload",
    "set_active_rank",
    "unmerge_adapter",
]
