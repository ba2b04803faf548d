"""What gguf_ext touches in other projects. A failure names what moved, and what breaks."""

import re

from sqft_plugins.canary import compare, undeclared
from sqft_plugins.canary.code import modules_of
from sqft_plugins.plugins.loading import without_package

UPSTREAM = without_package("gguf_ext.upstream").UPSTREAM


def test_the_list_has_every_private_name_that_this_package_touches():
    assert undeclared(UPSTREAM) == []


def test_every_name_is_in_its_place_and_every_probe_holds():
    assert [moved for result in compare([UPSTREAM]) for moved in result.moved] == []


def test_the_list_has_every_c_function_that_is_called():
    sources = [module.text for module in modules_of("gguf_ext") if not module.name.endswith(".upstream")]
    called = {name for text in sources for name in re.findall(r"\b(?:c|_c|llama_cpp|library\(\))\.(llama_\w+)", text)}
    declared = {touch.name.rpartition(".")[2] for touch in UPSTREAM.touches}
    assert called - declared == set()
    assert len(called) > 20
