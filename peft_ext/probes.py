"""Behaviours of PEFT and transformers that this package relies on, tried out. Each returns why it does not hold, or
None."""

from __future__ import annotations

import importlib.metadata
import pickle

from packaging.version import Version


def peft_type_grows() -> str | None:
    """Whether a member that is added to PEFT's closed Enum is found by every way that PEFT looks for one."""
    from peft.utils import PeftType

    from peft_ext.registry import NAME, peft_type

    added = peft_type()
    ways = {
        "value": PeftType(NAME), "name": PeftType[NAME], "attribute": getattr(PeftType, NAME),
        "pickle": pickle.loads(pickle.dumps(added)),
    }  # fmt: skip
    wrong = [way for way, found in ways.items() if found is not added]
    return f"not found by {', '.join(wrong)}" if wrong or added not in list(PeftType) else None


def transformers_takes_peft() -> str | None:
    """Whether transformers' own add_adapter and load_adapter take the PEFT that is there."""
    from transformers.integrations.peft import MIN_PEFT_VERSION

    found = importlib.metadata.version("peft")
    return None if Version(found) >= Version(MIN_PEFT_VERSION) else f"it wants PEFT {MIN_PEFT_VERSION}, this is {found}"


def reads_are_seen() -> str | None:
    """Whether bypass/ still sees where a model reads a weight past its layer: Mamba's output projection is one."""
    from transformers import MambaConfig, MambaModel

    from peft_ext.bypass.walk import weights_read_by

    model = MambaModel(MambaConfig(vocab_size=8, hidden_size=8, state_size=2, num_hidden_layers=1))
    read, complete = weights_read_by(model.get_submodule("layers.0.mixer"))
    if not complete:
        return "its source cannot be read"
    return None if read else "no read of a weight is seen in Mamba's mixer, which has one"
