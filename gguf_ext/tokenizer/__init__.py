"""The tokenizer of a model as llama.cpp's: the same token ids, or an error, or a line that says which texts differ.

Read in this order:

    read             a model folder → a `Vocabulary`, by whichever tokenizer files the folder has
    keys             the `tokenizer.*` keys, and what llama.cpp takes without them
    vocabulary       `Vocabulary`: tokens, kinds, scores, merges, special tokens → the `tokenizer.*` entries of a file
    bpe              tokenizer.json: byte-level BPE → llama.cpp's `gpt2`, BPE with byte fallback → its `llama`
    merges           the merges of a BPE with byte fallback → the scores by which `llama` merges
    pretokenizer     the regular expressions of a byte-level BPE → llama.cpp's name for them
    pre_names        which of these names mean the same to llama.cpp
    sentencepiece    tokenizer.model → `llama`
    tekken           tekken.json of Mistral → a tokenizer.json in memory
    chat_templates   chat templates, into the file and rendered from it
    ending           at which tokens a text ends
    stripping        white space beside special tokens, which llama.cpp derives from `general.name`
    limits           what llama.cpp's tokenizers cannot do as transformers' does, a line each
"""
