"""`sqft serve`: the command line and environment of a vLLM server, started and watched."""
