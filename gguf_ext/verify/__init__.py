"""`sqft verify`: whether a GGUF file is the model.

tensors     every weight, bit for bit; the report
tokenizer   tokens, merges, special tokens, flags and chat templates
trial       some hundred texts, cut by llama.cpp and by the model's own tokenizer
merged      a file with an adapter merged in, against its base: byte by byte
logits      `--logits`: both run on a text
"""
