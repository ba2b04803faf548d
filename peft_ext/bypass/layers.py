"""The layers of one model that are computed with past any adapter: left out where others of their name are called, else
refused."""

from __future__ import annotations

import warnings

from torch import nn

from peft_ext.bypass.walk import weights_read_by
from peft_ext.registry import BaseTunerLayer
from sqft_plugins.errors import SQFTError
from sqft_plugins.structure import is_linear


class BypassedLayers:
    """The linear layers of one model whose weight one of their parents reads itself; each parent is looked at once."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._read_by: dict[nn.Module, list[nn.Module]] = {}
        self._warned: set[type] = set()

    def leaves_out(self, target: nn.Module, name: str) -> bool:
        """Whether the layer `name` is to be left out, because one of its parents computes with its weight and does not
        call it: an adapter there would do nothing until it is merged.

        Logs a warning where other layers of its last name are called. Raises SQFTError where all of them are bypassed:
        then the user has named nothing that can be adapted. PEFT has the check for `out_proj` of Mamba blocks only
        (tuners_utils.py, _check_lora_target_modules_mamba).
        """
        parent = self._reader(target, name)
        if parent is None:
            return False

        kind = getattr(getattr(self.model, "config", None), "model_type", None) or type(parent).__name__
        last, remedy = name.rpartition(".")[2], f"exclude_modules={self._names(parent)}"
        what = f"target_modules matches {last}: {kind} reads that weight itself, past any adapter ({name}, by "

        alike = [(n, m) for n, m in self.model.named_modules() if n.rpartition(".")[2] == last and n != name]
        if all(self._reader(module, path) is not None for path, module in alike):
            raise SQFTError(f"{what}{type(parent).__name__}): leave it out with {remedy}")
        warnings.warn(f"{what}{type(parent).__name__}): it is left out, as with {remedy}", stacklevel=2)
        return True

    def _reader(self, target: nn.Module, name: str) -> nn.Module | None:
        """The nearest parent of the layer `name` that reads its weight."""
        path = name.split(".")[:-1]
        for parent in (self.model.get_submodule(".".join(path[:length])) for length in range(len(path), -1, -1)):
            if any(target is module for module in self._weights_of(parent)):
                return parent
        return None

    def _weights_of(self, parent: nn.Module) -> list[nn.Module]:
        """The modules whose weight `parent` reads. Logs a warning, once a class, where its source cannot be seen."""
        if parent in self._read_by:
            return self._read_by[parent]

        self._read_by[parent], complete = weights_read_by(parent)
        if not complete and type(parent) not in self._warned:
            self._warned.add(type(parent))
            warnings.warn(
                f"{type(parent).__name__} has no source here, so it was not checked whether it reads the weights "
                "of its layers itself, past any adapter: compare the logits before and after a merge",
                stacklevel=2,
            )
        return self._read_by[parent]

    def _names(self, parent: nn.Module) -> list[str]:
        """What excludes the layers that `parent` reads, and no others of their names."""
        prefix = next(name for name, module in self.model.named_modules() if module is parent)
        read = [module for module in self._read_by[parent] if is_linear(module) or isinstance(module, BaseTunerLayer)]
        own = [name for name, module in parent.named_modules() if name and module in read]
        paths = [f"{prefix}.{name}".removeprefix(".").split(".") for name in own]
        return sorted({".".join(path[-2:] if not path[-2:][0].isdigit() else path[-1:]) for path in paths})
