"""The verbs.

export   `sqft export gguf`, `sqft export gguf-lora`
verify   `sqft verify`
chat     `sqft chat`
"""
