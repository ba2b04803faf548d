from __future__ import annotations

import pytest

from gguf_ext.backend import build  # noqa: F401 (the remedy that the reason names)
from gguf_ext.backend.load import BUILD, FILE
from sqft_plugins.kernels.library import FILE as KERNELS


@pytest.fixture(scope="session")
def library():
    if not FILE.is_file() or not KERNELS.is_file():
        pytest.skip(f"{FILE.name} or {KERNELS.name} was not built: {BUILD}")
