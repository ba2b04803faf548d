"""The hyper-parameters that llama.cpp's graphs read.

compare   those of a file against those that a model must have, and llama.cpp's defaults
config    those of a config.json, under llama.cpp's names
"""
