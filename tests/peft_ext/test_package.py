"""`import peft_ext` costs what `import peft` costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

OURS = {"peft_ext", "sqft_plugins", "peft"}
SMALL = {
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
    "pluggy",
    "packaging",
    "jinja2",
    "markupsafe",
    "rich",  # transformers 5.24 does not bring it any more
}


@pytest.mark.once
def test_importing_it_brings_nothing_large_that_peft_does_not_bring() -> None:
    code = """if True:
        import sys
        import peft
        before = set(sys.modules)
        import peft_ext
        print(*sorted({name for name in set(sys.modules) - before}))
    """
    brought = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    packages = {name.partition(".")[0] for name in brought} - set(sys.stdlib_module_names)
    assert packages - OURS <= SMALL  # torch's compilers, compressed-tensors and more of transformers would show here
