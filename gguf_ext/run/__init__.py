"""GGUF files in llama.cpp, through llama-cpp-python.

llama        `gguf_ext.load`: llama-cpp-python's `Llama` with adapters that are switched
session      `LlamaSession`: logits and greedy completions, for `sqft eval` and `sqft verify --logits`
adapters     LoRA files over a loaded model
chat         a conversation, without its terminal
loadable     files at which llama.cpp would end the process: refused before
first_load   a file of an unknown architecture, loaded once in a process apart
vocabulary   the tokenizer of a file alone
backend      the C library and its log
"""
