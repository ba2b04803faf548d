"""`sqft export gguf-lora`: a dense adapter as a LoRA file of llama.cpp.

export   adapter folder → file
config   which adapters a LoRA file can hold
"""
