"""The verbs: `export` has `sqft export gguf`, `sqft export gguf-lora` and `sqft verify`, `chat` has `sqft chat`."""
