"""SQFT as a PEFT tuner: `get_peft_model(model, SQFTConfig(...))`.

Importing this package registers the adapter type with PEFT; it must come before an SQFT adapter is loaded.
"""

from peft_ext import registry
from peft_ext.config import SQFTConfig
from peft_ext.layer import Linear
from peft_ext.model import SQFTModel

registry.register(SQFTConfig, SQFTModel)

__all__ = ["Linear", "SQFTConfig", "SQFTModel"]
