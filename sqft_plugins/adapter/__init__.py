"""Adapter folders, as PEFT saves them, without PEFT.

folder            `AdapterFolder`: configuration, tensors, ranks, scaling; what everybody reads an adapter through
saved             `SavedAdapter`: a folder with the plug-in that reads its type, to load it over a base at a rank
tensor_names      names in an adapter's file: module, A or B, the base's weight saved along
lora_config       PEFT's rules about a `LoraConfig`: is this module adapted, at which rank, with which scaling
trained_over      was it trained over this base: hash of the masks, grid stamp
initialisations   which initialisations of a LoRA change the base weight

Ranks of an elastic adapter are in `sqft_plugins.elastic`, saved ones in `sqft_plugins.configurations`.
"""

from sqft_plugins.adapter.folder import AdapterFolder, AdapterKind, LoraPair, is_adapter

__all__ = ["AdapterFolder", "AdapterKind", "LoraPair", "is_adapter"]
