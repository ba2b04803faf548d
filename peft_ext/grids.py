"""The INT4 grid under quantization-aware adapters: finding it, and checking that the base is the one trained over.

There are two kinds of base. "int4": an INT4 folder loaded as plain linears, whose weights are its dequantized codes;
the mask is the one stored with it, because INT4 has rounded kept weights to zero. "float": the sparse float model that
the INT4 folder was made from, whose nonzero pattern is the mask; only scales and zero points come from the folder.
A file of others in place of the folder, such as a GGUF file, may be `dense`: then there is no mask over either base.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from peft_ext.checks import holds_codes
from peft_ext.config import SQFTConfig
from peft_ext.layer import Linear
from peft_ext.provenance import Found, FoundStamp, check_stamp, is_found
from peft_ext.rest import listed, rest_off_grid
from peft_ext.unmerged import UnmergedWeights
from sqft_plugins.adapter.trained_over import GridHashes
from sqft_plugins.checkpoint.folder import ModelFolder
from sqft_plugins.checkpoint.hub import local_folder
from sqft_plugins.checkpoint.model_file import ModelFile, open_model
from sqft_plugins.checkpoint.packed_layers import is_packed
from sqft_plugins.errors import CheckpointError, MismatchError, SQFTError
from sqft_plugins.grid import QuantizedWeight
from sqft_plugins.layer_grid import LayerGrid, PackedLayerGrid
from sqft_plugins.mask import nonzero_mask

UNRELATED = 0.9
"""Norm of what quantizing changed, over the norm of the weight. Two bits change about half; two independent weights
differ by 1.4, and a weight differs from zeros by 1."""


def attach_grids(
    model: nn.Module, config: SQFTConfig, adapter: str, layers: Mapping[str, Linear]
) -> tuple[Found | None, FoundStamp | None]:
    """Gives each layer its grid → the base's mask hash and grid stamp, None where it has no weights yet.

    Reads every adapted module of the INT4 folder once. Raises CheckpointError and GridError for a folder that is not
    INT4 or does not fit, MismatchError for a base that is not the adapter's own.
    """
    if not layers:
        return None, None
    weights = UnmergedWeights(layers)
    for name, weight in weights.items():
        if weight.is_meta or weight.numel() == 0:
            raise SQFTError(f"{name} has no weight here: quantization_aware needs the base loaded before the adapter")
    packed = [name for name, layer in layers.items() if is_packed(layer.base())]
    if packed and config.rounding != "compensated":
        raise SQFTError(
            f"{packed[0]} is packed, and rounding={config.rounding!r} needs its floats: load the base with load_model, "
            "or settle with rounding='compensated'"
        )

    folder = int4_folder(model, config)
    if not any(bool(weight.any()) for weight in weights.values()):
        # FSDP with cpu_ram_efficient_loading: all processes but the first have zeros until it sends the weights
        for name, layer in layers.items():
            layer.elastic[adapter].grid = _unchecked(folder, name, weights[name].dtype, config)
        return None, None

    # each layer's grid, and what says which base and which grid it is
    kinds: set[bool] = set()
    hashes = GridHashes()
    for name, layer in layers.items():
        own = weights[name]
        weight = own.detach().cpu()
        grid, own_codes = _layer_grid(folder, name, weight, holds_codes(layer.base()), config.sparse)
        kinds.add(grid.on_grid)
        held = layer.base()
        leaner = PackedLayerGrid(held.packed) if is_packed(held) and grid.on_grid and grid.dense else None
        layer.elastic[adapter].grid = leaner or grid.to(own.device)
        hashes.add(name, None if grid.dense else _mask_of(grid, weight), grid.with_codes(own_codes))
    if len(kinds) > 1:
        raise MismatchError(
            f"some adapted weights are the codes of {folder.path} and some are not: load the base again"
        )

    # what the adapter was trained over
    on_grid = kinds.pop()
    dtype = str(weight.dtype).removeprefix("torch.")
    found = hashes.grid_stamp("int4" if on_grid else "float", folder.int4.grid, dtype)
    if not is_found(config.grid_stamp):
        check_stamp(config, adapter, hashes.mask_hash, found, folder.path)

    rest = [] if on_grid else rest_off_grid(model, folder, layers)
    if rest:
        warnings.warn(
            f"{listed(rest)} {folder.label} in {folder.path} but not adapted: float here, and {folder.label} after a "
            "merge. Call model.base_model.put_rest_on_grid() to train as it will be",
            stacklevel=2,
        )
    return Found(hashes.mask_hash), FoundStamp(found)


def check_grid(base: ModelFolder, config: SQFTConfig) -> None:
    """What can be known of a grid before the model folder `base` is loaded. Raises SQFTError."""
    folder = _open(config.grid or str(base.path), config)
    if not config.sparse:
        for module in folder.masks:
            _check_dense(folder, module, folder.mask(module))
    if base.grid is not None and config.sparse:
        base.check_masked()
    elif base.grid is None:
        missing = set(folder.int4.modules) - {name.removesuffix(".weight") for name in base.files}
        if missing:
            raise MismatchError(
                f"{sorted(missing)[0]} is {folder.label} in {folder.path} but not in {base.path}: "
                "give the folder that was quantized from this base"
            )


def int4_folder(model: nn.Module, config: SQFTConfig) -> ModelFolder:
    """The INT4 folder of `config.grid`, or the one that `model` was loaded from."""
    name = config.grid or getattr(model, "name_or_path", "") or ""
    if not name:
        raise SQFTError(
            "quantization_aware=True needs a grid, but this model was not loaded from a folder: "
            "name the folder that was quantized from it with grid='…'"
        )
    return _open(name, config)


def _open(name: str, config: SQFTConfig) -> ModelFolder:
    try:
        folder = open_model(local_folder(name))
    except CheckpointError as error:
        raise CheckpointError(
            f"grid={name!r} cannot be read ({error}): config = SQFTConfig.from_pretrained(adapter), set config.grid, "
            "and give config=config to PeftModel.from_pretrained; or sqft … --grid"
        ) from error

    if folder.grid is None:
        stamp = config.grid_stamp or {}
        own = f" or load the adapter on {config.base_model_name_or_path}" if stamp.get("base") == "int4" else ""
        raise MismatchError(
            f"quantization_aware=True needs a grid, but {name} is a float model: name the folder that was quantized "
            f"from it with grid='…' (`sqft quantize` makes one){own}"
        )
    return folder


def _layer_grid(
    folder: ModelFolder, name: str, weight: Tensor, dequantized: bool, sparse: bool
) -> tuple[LayerGrid, Tensor]:
    """The grid of one module, and the codes [out, in] of its base alone.

    weight: [out, in], on the CPU. dequantized: whether it was loaded from INT4. sparse: False for a base that was never
    pruned. Raises CheckpointError, MismatchError.
    """
    if name not in folder.int4:
        if isinstance(folder, ModelFile):
            folder.check_grids([name])
        raise CheckpointError(
            f"target_modules adapts {name}, which is not quantized in {folder.path}: leave it out with exclude_modules"
        )
    stored = folder.quantized(name)
    if stored.codes.shape != weight.shape:
        raise MismatchError(
            f"{name} is {tuple(weight.shape)} here but {tuple(stored.codes.shape)} in {folder.path}: "
            "give the folder that was quantized from this base"
        )
    stored.grid.check_finite(f"{name} of {folder.path}")
    own = folder.mask(name)
    dense = own is None and (folder.dense or not sparse)
    if not sparse:
        _check_dense(folder, name, own)

    # a base of codes: its mask is the stored one
    if _holds(weight, stored):
        mask = None if dense else folder.kept(name)
        _check_zeros(folder, name, stored, mask)
        return LayerGrid(stored.grid, mask, True, dense, _codes_to_keep(stored, weight.dtype)), stored.codes

    # an INT4 base that is not what it should be
    rounded = next((dtype for dtype in (torch.bfloat16, torch.float16) if _holds_rounded(weight, stored, dtype)), None)
    if rounded is not None and isinstance(folder, ModelFile):
        raise MismatchError(
            f"{name} holds the weights of {folder.path} itself, rounded to {str(rounded).removeprefix('torch.')}: "
            "nothing more can be learned from them. Train over the file alone, without --base and grid='…' "
            "(sqft_plugins.checkpoint.load_model loads it)"
        )
    if rounded is not None:
        raise MismatchError(
            f"{name} holds the codes of {folder.path} rounded to {str(rounded).removeprefix('torch.')} and cast "
            f"to {str(weight.dtype).removeprefix('torch.')}, which is not exact: load the base in the dtype that it is "
            "to have (dtype=torch.float32), and cast it neither with .float() nor with prepare_model_for_kbit_training"
        )
    if dequantized:
        raise MismatchError(
            f"{name} holds codes, but not those of {folder.path}: give the quantized folder that this base was loaded "
            "from, or the sparse float base that grid='…' was made from"
        )

    # a float base: its mask is its nonzero pattern
    _check_near(folder, name, weight, stored)
    pattern = None if dense else nonzero_mask(weight)
    if own is not None and pattern is not None and not torch.equal(own, pattern):
        raise MismatchError(
            f"{int((own != pattern).sum())} weights of {name} are zero here and kept in {folder.path}, or the other "
            "way round: give the folder that was quantized from this base with grid='…'"
        )
    _check_zeros(folder, name, stored, pattern)
    grid = LayerGrid(stored.grid, dense=dense)
    return grid, grid.quantize(weight)


def _mask_of(grid: LayerGrid, weight: Tensor) -> Tensor:
    return nonzero_mask(weight) if grid.mask is None else grid.mask


def _unchecked(folder: ModelFolder, name: str, dtype: torch.dtype, config: SQFTConfig) -> LayerGrid:
    stored, on_grid = folder.quantized(name), config.grid is None
    dense = folder.mask(name) is None and (folder.dense or not config.sparse)
    mask = folder.kept(name) if on_grid and not dense else None
    return LayerGrid(stored.grid, mask, on_grid, dense, _codes_to_keep(stored, dtype) if on_grid else None)


def _holds(weight: Tensor, stored: QuantizedWeight) -> bool:
    """Whether `weight` [out, in] is the dequantized codes, in its own dtype."""
    return weight.shape == stored.codes.shape and torch.equal(weight.cpu(), stored.dequantize(weight.dtype))


def _holds_rounded(weight: Tensor, stored: QuantizedWeight, dtype: torch.dtype) -> bool:
    """Whether `weight` [out, in] is the dequantized codes in the narrower `dtype`, cast since."""
    if weight.shape != stored.codes.shape or weight.dtype == dtype:
        return False
    return torch.equal(weight.cpu(), stored.dequantize(dtype).to(weight.dtype))


def _codes_to_keep(stored: QuantizedWeight, dtype: torch.dtype) -> Tensor | None:
    """The codes, where the values in a base's narrow dtype do not tell which code they were: 8 bits, or an offset that
    is larger than bf16 can add a step to. None where training can put the base back on its grid by itself."""
    if dtype in (torch.float32, torch.float64) or (stored.grid.kind.is_integer and stored.grid.kind.bits <= 6):
        return None
    again = stored.grid.dequantize(stored.grid.quantize(stored.dequantize(dtype)))
    return None if torch.equal(again, stored.dequantize()) else stored.codes


def _check_near(folder: ModelFolder, name: str, weight: Tensor, stored: QuantizedWeight) -> None:
    """weight: [out, in], float. Raises MismatchError where `stored` is no quantization of it."""
    weight = weight.float()
    distance = float((weight - stored.dequantize()).norm() / weight.norm().clamp_min(torch.finfo().tiny))
    if distance > UNRELATED:
        raise MismatchError(
            f"{name} differs from {folder.path} by {distance:.2g} times its own size, so they are of two models: give "
            "the float model that this was quantized from, or grid='…' made from this base"
        )


def _check_dense(folder: ModelFolder, name: str, mask: Tensor | None) -> None:
    """Raises MismatchError for a mask (bool [out, in]) that prunes weights, which a dense delta would fill."""
    if mask is not None and not bool(mask.all()):
        raise MismatchError(
            f"sparse=False over {folder.path}, whose mask prunes {int((~mask).sum())} weights of {name}: a dense delta "
            "would fill them, leave sparse=True"
        )


def _check_zeros(folder: ModelFolder, name: str, stored: QuantizedWeight, mask: Tensor | None) -> None:
    """mask: bool [out, in], None for a dense one. Raises MismatchError for pruned weights that are not 0, or that could
    not be."""
    if mask is None:
        return
    if not stored.grid.has_zero and not bool(mask.all()):
        raise MismatchError(
            f"{name} is {stored.grid.kind.name} in {folder.path}, a grid without 0, and its mask prunes weights, which "
            "would not stay 0: take a grid with 0, such as int4, or a dense base"
        )
    filled = stored.lost_zeros(mask)
    if filled:
        raise MismatchError(
            f"{filled} pruned weights of {name} are not zero in {folder.path}: its mask is another model's, "
            "quantize the sparse base again with `sqft quantize`"
        )
