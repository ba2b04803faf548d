"""What the reports of `sqft inspect` are made of: what a weight shows by itself, and the layers summed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sqft_plugins.mask import conforms, nonzero_mask, sparsity_of
from sqft_plugins.pattern import Pattern

Row = dict[str, Any]


def zeros_of(weight: Tensor, patterns: Sequence[Pattern]) -> Row:
    """weights, zeros (fraction exactly 0), not_finite (how many) and patterns of a weight [out, in].

    patterns: "2:4" → the fraction of groups of 4 neighbours along `in` with at most 2 nonzeros; an M that does not
    divide `in` is left out.
    """
    nonzero = nonzero_mask(weight)
    return {
        "weights": weight.numel(),
        "zeros": sparsity_of(nonzero),
        "not_finite": int(torch.count_nonzero(~torch.isfinite(weight))),
        "patterns": {
            str(pattern): conforms(nonzero, pattern.keep, pattern.group)
            for pattern in patterns
            if pattern.keep is not None and pattern.group is not None and weight.shape[1] % pattern.group == 0
        },
    }


def conforming(patterns: dict[str, float]) -> str:
    """The strictest N:M that every group of a layer conforms to, "" without one."""
    return next((name for name, fraction in patterns.items() if fraction == 1), "")


def total_of(layers: Sequence[Row]) -> Row:
    """The layers summed up: layers, weights, bytes, zeros, pruned, violations, kept_zero, not_finite, patterns (over
    the layers whose `in` they divide), bits_per_weight, dtypes, gguf, gguf_exact, and for INT4 codes and scale."""
    weights = sum(row["weights"] for row in layers)
    masked = [row for row in layers if row["pruned"] is not None]
    total: Row = {
        "layers": len(layers),
        "weights": weights,
        "bytes": round(sum(row["bits_per_weight"] * row["weights"] for row in layers) / 8),
        "zeros": _mean(layers, "zeros"),
        "pruned": _mean(masked, "pruned") if masked else None,
        "violations": sum(row["violations"] for row in masked) if masked else None,
        "kept_zero": sum(row["kept_zero"] for row in masked) if masked else None,
        "not_finite": sum(row["not_finite"] for row in layers),
        "patterns": {},
        "bits_per_weight": _mean(layers, "bits_per_weight"),
        "dtypes": count(row["dtype"] for row in layers),
        "gguf": count(row["gguf"] for row in layers),
        "gguf_exact": all(row["gguf_exact"] for row in layers),
    }

    for name in dict.fromkeys(name for row in layers for name in row["patterns"]):
        judged = [{"weights": row["weights"], **row["patterns"]} for row in layers if name in row["patterns"]]
        total["patterns"][name] = _mean(judged, name)

    quantized = [row for row in layers if "scale" in row]
    if quantized:
        total["scale"] = [min(row["scale"][0] for row in quantized), max(row["scale"][1] for row in quantized)]
        if len({len(row["codes"]) for row in quantized}) == 1:  # a GGUF file may mix 16 codes and 32
            total["codes"] = [sum(counts) for counts in zip(*(row["codes"] for row in quantized), strict=True)]
    return total


def count(names: Iterable[str]) -> dict[str, int]:
    """name → how often, in the order of the names."""
    return dict(Counter(names))


def _mean(rows: Sequence[Row], key: str) -> float:
    """Over all weights: exact where every row says the same."""
    if len({row[key] for row in rows}) == 1:
        return float(rows[0][key])
    return float(sum(row[key] * row["weights"] for row in rows) / sum(row["weights"] for row in rows))
