"""The linear layers that are pruned, quantized and adapted: those inside the decoder blocks, found by structure.

The blocks are the longest list of modules that hold linear layers and stand beside the embedding of the tokens: the
tower of a vision model, which stands elsewhere, is none, however long; nor is a list inside another such list (the
experts of one block, say). Where no list stands beside an embedding, the members of the longest must be of one class.
Embeddings and `lm_head` lie outside the blocks, and a layer that shares its weight with anything outside its block is
left out, so neither is ever compressed.

GPT-2's Conv1D is a linear layer whose weight is stored [in, out]. Everywhere in this project a weight is [out, in]:
`weight_of` and `set_weight` turn it round for a layer, `ModelFolder.weight` for a file.

transformers is imported when a function needs it, because reading a folder must not cost that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from sqft_plugins.errors import CheckpointError, SQFTError, first_line
from sqft_plugins.identity import record_of
from sqft_plugins.model_files import open_file

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D


@dataclass(frozen=True)
class Structure:
    """The linear layers of a model. blocks: the name of the block list, such as "model.layers".
    shapes: module name → (out, in), in the order of the model. outside: linear modules that stay as they are.
    transposed: those of `shapes` whose weight is stored [in, out]. length: the number of blocks. beside: modules that
    are no part of the language model (`beside_the_text`)."""

    blocks: str
    shapes: dict[str, tuple[int, int]]
    outside: list[str]
    transposed: frozenset[str] = frozenset()
    length: int = 0
    beside: tuple[str, ...] = ()

    def kind(self, module: str) -> str:
        """The name of a module within its block: "model.layers.3.mlp.up_proj" → "mlp.up_proj"."""
        return module.removeprefix(f"{self.blocks}.").partition(".")[2]

    def is_beside(self, module: str) -> bool:
        """Whether a module is no part of the language model."""
        return any(f"{module}.".startswith(f"{outer}.") for outer in self.beside)

    def block(self, module: str) -> int:
        """The number of the block that a module belongs to."""
        return int(module.removeprefix(f"{self.blocks}.").partition(".")[0])


def is_conv1d(module: nn.Module) -> TypeGuard[Conv1D]:
    """Whether a layer is transformers' Conv1D, a linear layer whose weight is stored [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether a module computes `x @ W.T + b` and nothing else."""
    return (isinstance(module, nn.Linear) and is_plain(cast(Any, type(module)))) or is_conv1d(module)


@lru_cache(maxsize=256)
def is_plain(kind: Any) -> bool:
    """Whether a class of linear layers computes what nn.Linear does: it keeps its forward pass, or, as Falcon's own
    class, has another that gives the same numbers. A router that returns the best experts (Llama 4) does not. A class
    of ours that makes its weight itself says so, `plain_linear = True`."""
    if kind.forward is nn.Linear.forward or vars(kind).get("plain_linear"):
        return True
    layer = kind.__new__(kind)
    try:
        with torch.device("cpu"), torch.no_grad():
            nn.Linear.__init__(layer, 5, 3, dtype=torch.float64)
            x = torch.linspace(-2, 2, 20, dtype=torch.float64).view(2, 2, 5)
            found = layer(x)
            return isinstance(found, Tensor) and torch.allclose(
                found, nn.functional.linear(x, layer.weight, layer.bias)
            )
    except Exception:  # it needs what nn.Linear does not have
        return False


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder blocks. Raises SQFTError for a model that has none."""
    candidates: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside_another = any(name.startswith(f"{outer}.") for outer in candidates)  # named_modules yields parents first
        if isinstance(module, nn.ModuleList) and not inside_another and _hold_linears(module):
            candidates[name] = module

    beside = _beside_the_embedding(model, candidates)
    alike = {name: blocks for name, blocks in candidates.items() if len({type(block) for block in blocks}) == 1}
    meant = beside or alike
    if not meant:
        raise SQFTError(
            f"model {type(model).__name__} has no list of equal blocks with linear layers: give a decoder model"
        )
    name = max(meant, key=lambda n: (len(meant[n]), _parameters(meant[n])))
    return name, meant[name]


def _hold_linears(blocks: nn.ModuleList) -> bool:
    """Whether the members hold linear layers; a list of such layers alone (Gemma 3n's AltUp) is no list of blocks."""
    return not all(map(is_linear, blocks)) and any(map(is_linear, blocks.modules()))


def _beside_the_embedding(model: nn.Module, candidates: Mapping[str, nn.ModuleList]) -> dict[str, nn.ModuleList]:
    """Those in the innermost module that holds both a list of blocks and the embedding of the tokens."""
    try:
        embedding = cast(Any, model).get_input_embeddings()
    except (AttributeError, NotImplementedError):  # no model of transformers, or one without tokens
        return {}
    place = next((name for name, module in model.named_modules() if module is embedding), None)
    if place is None:
        return {}
    around = {name: name.rpartition(".")[0] for name in candidates}
    around = {name: outer for name, outer in around.items() if not outer or place.startswith(f"{outer}.")}
    innermost = max(around.values(), key=len, default="")
    return {name: candidates[name] for name, outer in around.items() if outer == innermost}


def beside_the_text(model: nn.Module) -> list[str]:
    """The outermost modules that are no part of the language model, of a model that has one among others: the tower of
    a model that sees images, its projector. [] of a language model alone."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return []
    text = find_blocks(model)[0].rpartition(".")[0]
    head = cast(Any, model).get_output_embeddings()
    found: list[str] = []
    for name, module in model.named_modules():
        around = not name or f"{text}.".startswith(f"{name}.")
        if around or module is head or f"{name}.".startswith((f"{text}.", *(f"{outer}." for outer in found))):
            continue
        if any(True for _ in module.parameters()):
            found.append(name)
    return found


def body_of(model: nn.Module) -> nn.Module:
    """The language model without its head, as a calibration runs it on text: of a model that sees images, what stands
    around its language model is for images alone."""
    whole = cast(Any, model)
    body: nn.Module = (whole.get_decoder() if beside_the_text(model) else whole).base_model
    return body


def find_linears(model: nn.Module) -> dict[str, nn.Linear | Conv1D]:
    """Module name → linear layer, for all linear layers of the decoder blocks, in the order of the model.

    Raises SQFTError for a model without blocks.
    """
    blocks_name, blocks = find_blocks(model)
    prefix = f"{blocks_name}."
    block_of: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        inside = name.startswith(prefix)
        block_of.setdefault(id(parameter), set()).add(name.removeprefix(prefix).partition(".")[0] if inside else "")
    found: dict[str, nn.Linear | Conv1D] = {}
    for name, module in blocks.named_modules(prefix=blocks_name):
        if is_linear(module):
            own = module._parameters.get("weight")  # none where it is made when it is asked for
            if block_of.get(id(own), set()) <= {name.removeprefix(prefix).partition(".")[0]}:
                found[name] = module
    return found


def weight_of(linear: nn.Linear | Conv1D) -> Tensor:
    """The weight [out, in], a view."""
    return linear.weight.data.t() if is_conv1d(linear) else linear.weight.data


def set_weight(linear: nn.Linear | Conv1D, weight: Tensor) -> None:
    """Writes `weight` [out, in] into the layer, in the layer's dtype: in place, or, where the layer makes its weight
    from something else (checkpoint/packed_layers.py), in the place of that."""
    made = getattr(type(linear), "weight", None)
    if isinstance(made, property) and made.fset is not None:  # without, it is a view (an expert's)
        linear.weight = weight
    else:
        weight_of(linear).copy_(weight)


def structure_of(model: nn.Module) -> Structure:
    """The structure of a model in memory; shapes are (out, in)."""
    name, blocks = find_blocks(model)
    linears = find_linears(model)
    shapes = {name: (weight_of(m).shape[0], weight_of(m).shape[1]) for name, m in linears.items()}
    # routers of a class of their own, too, which others would take for layers to quantize
    all_linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) or is_conv1d(m)]
    outside = [n for n in all_linears if n not in shapes]
    transposed = frozenset(n for n, m in linears.items() if is_conv1d(m))
    return Structure(name, shapes, outside, transposed, len(blocks), tuple(beside_the_text(model)))


def structure_of_folder(path: str | Path) -> Structure:
    """The structure of a saved model from its configuration alone: no weight is read or allocated.

    Raises CheckpointError for a config that transformers does not know.
    """
    return _structure_of_folder(str(path), _content(Path(path)))


def _content(path: Path) -> Any:
    """What the structure of a model depends on: another content, another structure."""
    if path.is_file():
        return record_of(path)
    file = path / "config.json"
    return file.read_bytes() if file.is_file() else b""


@lru_cache(maxsize=8)
def _structure_of_folder(path: str, content: Any) -> Structure:
    return structure_of(meta_model(path))


def meta_model(path: str | Path) -> Any:
    """The float model of a folder or a file on the device meta, from its configuration alone. Raises CheckpointError
    for a config that transformers does not know."""
    config = transformers_config(path)
    if hasattr(config, "quantization_config"):  # what is asked for is the float model
        del config.quantization_config
    with torch.device("meta"):
        model = empty_model(config, path)
    model.tie_weights()
    return model


def transformers_config(path: str | Path) -> Any:
    """`AutoConfig.from_pretrained`; of a model that is a file, what its plug-in makes of it. Raises CheckpointError for
    a config.json that transformers does not know."""
    if (file := open_file(path)) is not None:
        return file.transformers_config()
    from transformers import AutoConfig

    with _known_to_transformers(path):
        return AutoConfig.from_pretrained(path)


def empty_model(config: Any, path: str | Path, **options: Any) -> Any:
    """The language model of a configuration, which came from `path`, with weights that mean nothing. Raises
    CheckpointError where transformers has none."""
    with _known_to_transformers(path):
        return auto_class(config).from_config(config, **options)


def auto_class(config: Any) -> Any:
    """The class of transformers that makes the model of a configuration: `AutoModelForCausalLM`, or, for a language
    model that sees images, `AutoModelForImageTextToText`. Of a configuration that both know, `architectures` says which
    model the files hold."""
    import transformers

    kinds: dict[Any, Any] = {
        transformers.AutoModelForCausalLM: transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.AutoModelForImageTextToText: transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    }
    named = set(getattr(config, "architectures", None) or ())
    found: dict[Any, Any] = {kind: mapping[type(config)] for kind, mapping in kinds.items() if type(config) in mapping}
    known = {kind: model.__name__ for kind, model in found.items()}
    first = next(iter(known), transformers.AutoModelForCausalLM)
    return next((kind for kind, name in known.items() if name in named), first)


@contextmanager
def _known_to_transformers(path: str | Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # ValueError, KeyError, and those of huggingface_hub's own checks
        raise CheckpointError(
            f"model {path} is no language model that transformers knows: check its config.json ({first_line(error)})"
        ) from error


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@contextmanager
def head_sees(head: nn.Module, pick: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within it the output head sees `pick(hidden)` in place of the hidden states [batch, tokens, hidden]."""
    handle = head.register_forward_pre_hook(lambda module, args: (pick(args[0]), *args[1:]))
    try:
        yield
    finally:
        handle.remove()
