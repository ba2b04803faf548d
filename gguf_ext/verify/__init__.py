"""`sqft verify`: whether a GGUF file is the model.

tensors           every weight, bit for bit; the report
hyperparameters   the metadata, as llama.cpp reads it
tokenizer         tokens, merges, special tokens, flags and chat templates
cuts              what llama.cpp itself makes of texts with the file
logits            `--logits`: both run on a text
"""
