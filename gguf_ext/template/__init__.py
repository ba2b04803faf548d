"""`--template-gguf`: models without a table, laid out as a GGUF file of the same base is.

sources   which tensor stands where, and in which order of rows: seen by comparing weights
check     whether config.json says what the template's metadata says
config    the hyper-parameters of a config.json under llama.cpp's names
"""
