"""`libggml_sqft`: sparse INT4 inside stock llama.cpp.

csrc/   the library, C++: what it knows of ggml (abi.h), how that is checked (probe.cpp), the buffer type (buffer.cpp),
        the multiplication (traits.cpp), which tensors it takes (choose.cpp, file.cpp), Q4_0 ↔ packed (repack.cpp)
build   compiling it
load    `enable`: putting it into the llama.cpp of this process
"""

from gguf_ext.backend.load import SparseBackend, choosing, disable, enable, held, install, tell_why

__all__ = ["SparseBackend", "choosing", "disable", "enable", "held", "install", "tell_why"]
