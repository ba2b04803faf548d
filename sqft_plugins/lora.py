"""The rules of `sqft_plugins.adapter.lora_config` under the name that the server still imports them by."""

from sqft_plugins.adapter.lora_config import (
    check_adapted,
    check_lora_config,
    is_adapted,
    rank_of,
    scaling_of,
)
from sqft_plugins.adapter.lora_config import is_weight_of as kept_weight_is_the_bases

__all__ = [
    "check_adapted",
    "check_lora_config",
    "is_adapted",
    "kept_weight_is_the_bases",
    "rank_of",
    "scaling_of",
]
