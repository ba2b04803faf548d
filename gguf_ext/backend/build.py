"""Compiling the library: csrc/*.cpp → libggml_sqft.so beside this file. How: sqft_plugins/kernels/build.py.

python -m gguf_ext.backend.build
"""

from __future__ import annotations

import sys

from sqft_plugins.kernels.build import DOOR, main

if __name__ == "__main__":
    sys.exit(main(DOOR))
