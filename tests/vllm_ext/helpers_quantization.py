"""What runs inside vLLM's workers: vLLM hands functions to them by name, so they stand in a module of their own."""

from __future__ import annotations


def held(model) -> dict[str, tuple[list, list]]:
    """vLLM's name of each layer of quantization `sqft` → the codes and the mask that this worker holds."""
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "sqft"):
            weight, mask = module.sqft.operator.unpack(module.sqft.state)
            found[name] = (weight.codes.tolist(), mask.tolist())
    return found
