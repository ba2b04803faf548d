"""What the objects that hooks return must offer. Plug-ins need not inherit from these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from sqft_plugins.checkpoint.model_file import ModelFile
    from sqft_plugins.checkpoint.stamp import GridStamp
    from sqft_plugins.compress.settings import QuantizeSettings
    from sqft_plugins.grid import QuantizedWeight
    from sqft_plugins.mask import Pattern
    from sqft_plugins.search.space import Space

Statistic = Literal["none", "norm", "hessian"]
"""What a method wants to know of a linear's inputs X [tokens, in]: nothing, ‖X‖ per column [in], or XᵀX [in, in]; both
float32, summed over all tokens and not divided by their number."""


class Pruner(Protocol):
    """name: as in `--method`. statistic: what `prune` gets as its second argument (float32, None for "none")."""

    name: str
    statistic: Statistic

    def prune(self, weight: Tensor, statistic: Tensor | None, pattern: Pattern) -> tuple[Tensor, Tensor]:
        """weight [out, in] → the new weight (same shape and dtype) and its mask (bool, True = kept). `weight` itself
        stays as it is; of the new one, what the mask prunes is exactly 0."""


class Quantizer(Protocol):
    """name: as in `--method`. statistic: what `quantize` gets as its third argument."""

    name: str
    statistic: Statistic

    def quantize(self, weight: Tensor, mask: Tensor, statistic: Tensor | None, grid: GridStamp) -> QuantizedWeight:
        """weight [out, in] → codes on the grid; every weight that `mask` prunes must get the code of zero."""


class Maker(Protocol):
    """A format with quantizers of its own. name: of the format. grids: what `sqft quantize --grid` makes in it.
    methods: for `--method`, the first is the default. ending: of its files, such as ".gguf"."""

    name: str
    grids: Sequence[str]
    methods: Sequence[str]
    ending: str

    def check(self, what: str, settings: QuantizeSettings, pruned: bool) -> None:
        """Raises SQFTError where the settings cannot be for a model that is `pruned`, or for one that is not; before
        any step of a recipe, so that the model is not there yet. what: it is called so."""

    def make(self, model: Path, out: Path, settings: QuantizeSettings, overwrite: bool = False) -> Mapping[str, Any]:
        """Writes the float model folder `model` as the file `out` → a report, for `--json`."""

    def describe(self, report: Mapping[str, Any]) -> str:
        """The report in a line."""


Searcher = Callable[[Sequence[str], Sequence[int]], Mapping[str, int]]
"""(module names, search space) → module name → rank."""


class SearchMethod(Protocol):
    """A way to search by evaluating. name: as in `sqft search --method`. objectives: how many it can follow, 1 (the
    score), 2 (score and cost). starts: what is evaluated first: "heuristic", "max", "min", "most-frequent",
    "lowest-loss". proposes: whether it goes on after these."""

    @property
    def name(self) -> str: ...

    @property
    def objectives(self) -> Collection[int]: ...

    @property
    def starts(self) -> Sequence[str]: ...

    @property
    def proposes(self) -> bool: ...

    def sampler(self, space: Space, seed: int) -> Any:
        """An `optuna.samplers.BaseSampler`; each group of `space` is a categorical parameter of its ranks. What it
        proposes a second time is changed before it is evaluated."""


class Tuner(Protocol):
    """An adapter type. name: as in `--tuner`."""

    name: str

    def check(self, base: Path, settings: Any) -> None:
        """Raises SQFTError for settings that cannot work over the model folder `base`, before anything is loaded."""

    def attach(self, model: PreTrainedModel, settings: Any) -> nn.Module:
        """The model with a new, trainable adapter; `settings` is `sqft_plugins.tune.AdapterSettings`."""

    def load(self, model: PreTrainedModel, adapter: Path, grid: Path | None = None) -> nn.Module:
        """The model with a saved adapter, for evaluation. grid: the INT4 folder of a quantization-aware adapter, where
        it is not at the path that the adapter remembers."""

    def search_space(self, adapter: Path) -> tuple[Sequence[str], Sequence[int]]:
        """The adapted modules of a saved adapter and its rank choices (one where the rank is fixed)."""

    def set_rank(self, model: nn.Module, rank: Any) -> Mapping[str, int]:
        """Activates a rank for evaluation and merging → module name → rank."""

    def merge(self, model: nn.Module) -> tuple[PreTrainedModel, Mapping[str, Tensor]]:
        """The base with the adapter merged in, and module name → mask of the base (empty for a dense adapter)."""

    def grid_of(self, adapter: Path, base: Path) -> Path | None:
        """The INT4 folder whose grid a saved quantization-aware adapter of `base` was trained through; None for any
        other adapter."""

    def quantized(self, model: nn.Module, merged: bool = True) -> Mapping[str, QuantizedWeight]:
        """Module name → INT4 weight of the base with a quantization-aware adapter merged in, or of the base alone."""

    def extract(self, adapter: Path, target: Path, rank: Any) -> Mapping[str, int]:
        """Writes the sub-adapter of that rank into the empty folder `target` → module name → rank."""

    # May also offer settle(model, tokens), which `sqft train` calls when training has ended, with tokens of what was
    # learned, int64 [sequences, length]; check_settled(model), which raises SQFTError for a saved adapter of which that
    # was not done; and, for `sqft search`: drawn_ranks(model) -> Mapping[str, int], module name → rank of the training
    # step that was begun last, empty where none was drawn; `sqft train` records them.


class Exporter(Protocol):
    """name: as in `sqft export NAME`. command: the click command that does it."""

    name: str

    @property
    def command(self) -> Any: ...

    def export(self, model: Path, target: Path, overwrite: bool = False) -> Mapping[str, Any]:
        """Writes the model folder as `target`."""

    def verify(self, model: Path, target: Path) -> Mapping[str, Any]:
        """Compares `target` with the model folder → at least `equal` (bool), `zeros_kept` (fraction of pruned weights
        that are exactly 0) and `bits_per_weight` (of the masked modules)."""

    # May also offer, for `sqft plan`: estimate(model: Path, modules: Collection[str], grid: GridStamp) -> Mapping, what
    # an export of the float folder `model` would be once `modules` are INT4 on `grid` (none of them: the float model),
    # from headers alone: types (name → number of tensors), exact (bool), bytes (at most). SQFTError says why not.
    # For recipes: check_options(**options of the command), which raises SQFTError for a value that `command` would
    # refuse only after the steps above it, hours later.


class Inspector(Protocol):
    """name: what it reads. opens: whether it reads `path` (by its name or first bytes, nothing more)."""

    name: str

    def opens(self, path: Path) -> bool: ...

    def inspect(self, path: Path, patterns: Sequence[Pattern]) -> Mapping[str, Any]:
        """A report of the layout of `sqft_plugins.inspect.inspect_model` with a `kind` of its own. patterns: the N:M to
        judge, for `sqft_plugins.inspect.report.zeros_of`."""


class ModelReader(Protocol):
    """Models that are files. name: what it reads."""

    name: str

    def opens(self, model: str | Path) -> bool:
        """Whether it reads a path or name, by the name or the first bytes, nothing more."""

    def locate(self, model: str | Path) -> Path:
        """The file here; a name on the hub is downloaded into the hub's cache first. Raises SQFTError."""

    def open(self, path: Path) -> ModelFile:
        """The model of a file; weights are read when they are asked for. Raises SQFTError."""


@dataclass(frozen=True)
class Item:
    """One question. answer: the gold completion."""

    prompt: str
    answer: str


class Task(Protocol):
    """name: as in `--task`. items: the held-out questions. is_correct: judges a free-text completion."""

    @property
    def name(self) -> str: ...

    def items(self) -> Sequence[Item]: ...

    def is_correct(self, item: Item, completion: str) -> bool: ...


class Engine(Protocol):
    """A runtime. `opens` says whether it can evaluate `path`; `open` loads it once."""

    name: str

    def opens(self, path: Path) -> bool: ...

    def open(self, path: Path, **options: Any) -> Session: ...


class Session(Protocol):
    """A loaded model, opened once and asked many times."""

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> Iterator[str]:
        """The greedy completion of each prompt in order, without the prompt."""

    def logprobs(self, tokens: Sequence[int]) -> torch.Tensor:
        """float32 [len(tokens) - 1]: log-probability of each token after the first, given those before it."""

    def tokenize(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the model puts before a text."""

    def close(self) -> None: ...


Status = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True)
class Check:
    """One row of `sqft doctor`. remedy: the command that repairs it, empty where nothing is wrong."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Touch:
    """A name of another project on which code of ours relies beyond what that project documents.

    name: dotted, `package.module.Class.attribute`; an attribute may be one that only instances have.
    loss: what does not work where the name has moved.
    parameters: those of the function, in order, `"self, lora_id, **kwargs"`; ending in `...`, it may take more. None:
    whatever they are.
    says: words that its source has to contain.
    used: the place in our code.
    """

    name: str
    loss: str
    parameters: str | None = None
    says: tuple[str, ...] = ()
    used: str = ""


def touches(loss: str, *names: str, owner: str = "") -> tuple[Touch, ...]:
    """Several names with one loss. owner: a class or module that all of them are in."""
    return tuple(Touch(f"{owner}.{name}" if owner else name, loss) for name in names)


@dataclass(frozen=True)
class Probe:
    """A behaviour of another project on which code of ours relies, tried out.

    name: what has to hold, a sentence. loss: what does not work otherwise. run: `module:function`, which returns why it
    does not hold, or None. needs: the packages without which it is not run, the first is the one that is tried. copes:
    how our code lives with it where it does not hold; then that is said, and is no fault.
    """

    name: str
    loss: str
    run: str
    needs: tuple[str, ...]
    copes: str = ""


@dataclass(frozen=True)
class Upstream:
    """What `python -m sqft_plugins.canary` compares for one package of ours (or of a plug-in).

    code: the package, in whose sources imports, overridden and replaced methods are found.
    seen: package of another project, as it is imported → the versions in which everything was in its place.
    touches, probes: what the sources do not show.
    public: packages and modules of theirs that are documented: only names with an underscore are private there.
    """

    code: str
    seen: Mapping[str, str]
    touches: tuple[Touch, ...]
    probes: tuple[Probe, ...] = ()
    public: tuple[str, ...] = ()
