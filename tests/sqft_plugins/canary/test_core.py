"""What the core touches in other projects. A failure names what moved, and what breaks."""

from sqft_plugins.canary import compare, undeclared
from sqft_plugins.canary.core import UPSTREAM


def test_the_list_has_every_private_name_that_the_core_touches():
    assert undeclared(UPSTREAM) == []


def test_every_name_is_in_its_place_and_every_probe_holds(capfd):
    assert [moved for result in compare([UPSTREAM]) for moved in result.moved] == []
    said = "".join(capfd.readouterr())
    assert "weights are exact now" not in said  # of a temporary folder of ours, from transformers 5.24 on
