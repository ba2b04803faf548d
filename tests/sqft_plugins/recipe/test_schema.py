"""The JSON schema of a recipe."""

from __future__ import annotations

import json
from pathlib import Path

from sqft_plugins.recipe.schema import recipe_schema
from sqft_plugins.recipe.text import parse_yaml

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_the_schema_describes_every_option_and_knows_every_example():
    schema = recipe_schema()
    for verb, section in schema["$defs"].items():
        properties = section["anyOf"][0]["properties"]
        assert all(value.get("description") for value in properties.values()), verb
        assert "--" not in json.dumps(properties), verb
    files = [*EXAMPLES.glob("*.yaml"), *(EXAMPLES / "paper").glob("*.yaml")]
    assert len(files) >= 13
    for file in files:
        for name, values in parse_yaml(file.read_text()).items():
            if name not in ("model", "out"):
                properties = schema["$defs"][name.partition("-")[0]]["anyOf"][0]["properties"]
                assert (values or {}).keys() <= properties.keys(), (file, name)
