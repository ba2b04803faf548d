"""Recipes that several tests read."""

SPARSE = """
model: m
prune: {sparsity: 0.5}
train: {data: d.jsonl, rank_choices: [32, 24]}
search: {data: h.jsonl}
extract:
merge: {adapter: train}
quantize:
eval: {model: [base, prune, train, extract, merge, quantize]}
export:
"""
