"""`--template-gguf`: models without a table, laid out as a GGUF file of the same base is.

tensors   which tensor stands where, by the gguf package's names
fit       in which order of rows: seen by comparing weights
check     whether config.json says what the template's metadata says
"""
