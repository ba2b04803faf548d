"""A GGUF file as a model to train: the exporter's tables read backwards.

config       hyper-parameters → the configuration of transformers
names        modules of the checkpoint ↔ tensors of the file
weights      weights, codes and grids in the row order of the checkpoint
vocabulary   `tokenizer.*` → a `Vocabulary`, and whether it can be made exactly
tokenizer    `Vocabulary` → a tokenizer of transformers
file         `GGUFModel`: all of that, as a model folder answers
hub          names such as org/model-GGUF:Q4_K_M
"""
