"""From a model folder to the bytes of a GGUF file; `gguf_ext.export` calls these in this order:

tensors     a table of `gguf_ext.arch` and a folder → a `PlacedTensor` for every tensor of the file
plan        the type of every tensor, decided and checked before a byte is written
transcode   one weight → its type and its raw bytes, nothing lost
metadata    `general.*` and `sqft.*`
card        licence, languages, tags and base from the model card
split       files in parts: names, sizes, how they are published
file        the bytes: metadata, then one tensor after the other
"""
