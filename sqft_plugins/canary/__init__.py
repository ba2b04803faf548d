"""An alarm for what moves in other projects: names of theirs that our code touches beyond what they document are
looked for in what is installed. They are those of the lists, among them every private one, and those that our sources
show (code.py). A public attribute of an object whose class no annotation tells is neither: only tests meet it.

    sources.py   their sources, parsed and never imported: what is defined under a dotted name
    code.py      our sources: which of their names are touched (imports, overridden and replaced methods, attributes)
    compare.py   both, compared; and the probes, which are run
    core.py      the list of the core; each surface has one, `upstream.py`, for what the sources do not show
    probes.py    behaviours of transformers that the core relies on, tried out
    __main__.py  `python -m sqft_plugins.canary`

The lists come through the hook `sqft_upstream`, so that other plug-ins add theirs. `undeclared` is for a test: it names
what the code touches and the list lacks.
"""

from sqft_plugins.canary.code import undeclared
from sqft_plugins.canary.compare import Compared, Moved, compare, lists

__all__ = ["Compared", "Moved", "compare", "lists", "undeclared"]
