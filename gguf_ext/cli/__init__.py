"""The verbs.

export   `sqft export gguf`, `sqft export gguf-lora`
verify   `sqft verify`
patch    `sqft export patch`, `sqft patch`
chat     `sqft chat`
backend_path  `sqft backend-path`
"""
