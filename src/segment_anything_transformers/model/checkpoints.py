"""Reads Segment Anything weights of any origin, as numpy knows them, for either framework.

A checkpoint differs from a model of ours in three ways, each undone by a rule that stands once:
its names (`weight_names.py`; ours are those of Meta's checkpoints), its configuration
(`huggingface_sam.py`, or told by the shapes of the weights), and its sizes (`adapt_weights`).
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file
from transformers.utils.hub import get_checkpoint_shard_files

from .configuration_segment_anything import (
    PRESETS,
    SegmentAnythingModelConfig,
    is_preset,
    preset_of,
    preset_repository,
)
from .mask_ops import bilinear_matrix
from .weight_names import to_our_names

try:
    import h5py
except ImportError:
    h5py = None

Weights = dict[str, Any]
"""Names to arrays, of numpy or of PyTorch."""

WEIGHTS_FOLDER = Path(__file__).parents[1] / "weights"

_HUB_OPTIONS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
)
SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_PICKLE = "pytorch_model.bin"

# ------------------------------------------------------------------------------- configurations


def config_fields_from_weights(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of our configuration that the shapes of weights under our names tell.

    The number of the decoder's heads leaves no trace in the shapes: it is that of the preset with
    these widths and depths, or else the default, as in all of Meta's models.

    Raises:
        ValueError: These are not the weights of a Segment Anything model.
    """
    try:
        return _fields_from_shapes({name: tuple(w.shape) for name, w in weights.items()})
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"These are not the weights of a Segment Anything model: {error} is missing among "
            f"{len(weights)} names such as {sorted(weights)[:3]}."
        ) from error


def _fields_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    width, channels, patch, _ = shapes["image_encoder.patch_embed.proj.weight"]
    _, grid_h, grid_w, _ = shapes["image_encoder.pos_embed"]
    blocks = _count(shapes, "image_encoder.blocks")
    block = "image_encoder.blocks.{}.attn.rel_pos_h"
    tables = [shapes[block.format(i)] for i in range(blocks)]
    windows = {length for length, _ in tables if length != 2 * grid_h - 1}
    fields = {
        "in_channels": channels,
        "input_size": (grid_h * patch, grid_w * patch),
        "embed_dim": shapes["image_encoder.neck.0.weight"][0],
        "nb_multimask_outputs": shapes["mask_decoder.mask_tokens.weight"][0] - 1,
        "encoder_patch_size": patch,
        "encoder_embed_dim": width,
        "encoder_nb_blocks": blocks,
        "encoder_nb_heads": width // tables[0][1],
        "encoder_mlp_ratio": shapes["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        "encoder_qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in shapes,
        "encoder_global_attn_indices": tuple(
            i for i, (length, _) in enumerate(tables) if length == 2 * grid_h - 1
        ),
        "encoder_window_size": (windows.pop() + 1) // 2 if windows else 0,
        "prompt_mask_hidden_dim": shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        "decoder_nb_blocks": _count(shapes, "mask_decoder.transformer.layers"),
        "decoder_mlp_channels": shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        "decoder_iou_head_depth": _count(shapes, "mask_decoder.iou_prediction_head.layers"),
        "decoder_iou_hidden_dim": shapes["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    }
    name = preset_of(fields)
    return {**PRESETS.get(name, {}), **fields, "name": name, "url": ""}


def _count(names: Iterable[str], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for match in map(pattern.match, names) if match})


# ---------------------------------------------------------------------------------------- sizes


def adapt_weights(weights: Weights, config: SegmentAnythingModelConfig) -> Weights:
    """Weights under our names, fitted to another number of channels or another input size.

    `first_conv` is folded to one channel by a sum over the old ones, and repeated to more (scaled;
    with a multiple of the old number a grey image gives what it gave before). `pos_embed` and the
    relative positions of global blocks are resampled linearly. What fits stays as it is, the very
    same array.

    Args:
        weights: Names to arrays; left unchanged.
        config: What the model will be.
    """
    adapted = dict(weights)
    first_conv = config.first_conv.replace("/", ".") + ".weight"
    if first_conv in weights:
        adapted[first_conv] = _adapt_channels(weights[first_conv], config.in_channels)
    grid_h, grid_w = config.grid_size()
    if "image_encoder.pos_embed" in weights:
        positions = weights["image_encoder.pos_embed"]
        positions = _resample_axis(positions, 1, grid_h)
        adapted["image_encoder.pos_embed"] = _resample_axis(positions, 2, grid_w)
    for block in range(config.encoder_nb_blocks):
        if config.encoder_window_size and block not in config.encoder_global_attn_indices:
            continue
        for axis, side in (("h", grid_h), ("w", grid_w)):
            name = f"image_encoder.blocks.{block}.attn.rel_pos_{axis}"
            if name in weights:
                adapted[name] = _resample_axis(weights[name], 0, 2 * side - 1)
    return adapted


def _adapt_channels(kernel: Any, channels: int) -> Any:
    """A convolution kernel (out, in, h, w) for another number of input channels."""
    given = kernel.shape[1]
    if given == channels:
        return kernel
    array = _to_numpy(kernel)
    if channels == 1:
        return _like(array.sum(1, keepdims=True), kernel)
    repeated = array[:, [channel % given for channel in range(channels)]]
    return _like(repeated * (given / channels), kernel)


def _resample_axis(array: Any, axis: int, length: int) -> Any:
    if array.shape[axis] == length:
        return array
    matrix = bilinear_matrix(array.shape[axis], length)
    resampled = np.moveaxis(np.tensordot(matrix, _to_numpy(array), (1, axis)), 0, axis)
    return _like(resampled, array)


def _to_numpy(array: Any) -> np.ndarray:
    """As float32 in numpy, which does not know bfloat16."""
    return array.astype(np.float32) if isinstance(array, np.ndarray) else array.float().numpy()


def _like(array: np.ndarray, model: Any) -> Any:
    """As an array of the model's framework and type."""
    if isinstance(model, np.ndarray):
        return np.ascontiguousarray(array, dtype=model.dtype)
    return model.new_tensor(np.ascontiguousarray(array))


# ---------------------------------------------------------------------------------------- files


def load_checkpoint(
    source: str | os.PathLike[str],
    config_class: type[SegmentAnythingModelConfig],
    config: SegmentAnythingModelConfig | str | os.PathLike[str] | None,
    options: dict[str, Any],
    framework: str = "pt",
) -> tuple[SegmentAnythingModelConfig, Weights, dict[str, Any]]:
    """Configuration and weights, under our names and in the configuration's sizes.

    Args:
        source: A preset's name, a folder, a Hub repository, or a file of weights.
        config_class: Class of the configuration.
        config: The configuration to use instead of the checkpoint's, or where to find it.
        options: Options of the Hub, fields of the configuration to replace, and others.
        framework: "pt" for PyTorch tensors, "np" for numpy arrays.

    Returns:
        The configuration, the weights, and the options that were none of ours.

    Raises:
        OSError: The source does not exist or cannot be read.
        ValueError: The file does not hold a Segment Anything model, its weights are NaN, infinite
            or integers, or its configuration is none.
    """
    location = _locate(str(source))
    source = str(source)
    if _is_path(location) and not os.path.exists(location):
        raise FileNotFoundError(
            f"{location} does not exist. The presets are {', '.join(PRESETS)}; a Hub repository is "
            "written owner/name."
        )
    hub = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    if os.path.isfile(location):
        weights = to_our_names(read_weights([location], framework))
    else:
        weights = to_our_names(read_weights(_weight_files(location, hub), framework))
    check_values(weights, source)
    # Not asked as isinstance of our class, which as remote code is loaded once for every file.
    if config is not None and not isinstance(config, (str, os.PathLike)):
        return config, adapt_weights(weights, config), options
    if config is None and os.path.isfile(location):
        fields = config_fields_from_weights(weights)
        made, options = config_class.from_dict(fields, return_unused_kwargs=True, **options)
    else:
        named = location if os.path.isdir(location) else source
        origin = str(named if config is None else config)
        made, options = _read_config(config_class, origin, {**hub, **options})
    return made, adapt_weights(weights, made), options


def _read_config(
    config_class: type[SegmentAnythingModelConfig], origin: str, options: dict[str, Any]
) -> tuple[SegmentAnythingModelConfig, dict[str, Any]]:
    """The configuration that lies somewhere; ValueError with that place if its types are wrong."""
    try:
        made, unused = config_class.from_pretrained(origin, return_unused_kwargs=True, **options)
        return made, unused
    except (AttributeError, KeyError, RecursionError, TypeError) as error:
        fields = config_class.__annotations__
        if any(name in fields for name in options):
            raise  # what was passed may be wrong, and not what was read
        raise ValueError(f"The configuration of {origin} cannot be used: {error}") from error


_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def check_values(weights: Weights, source: str) -> None:
    """Refuses weights that can only give nonsense.

    Args:
        weights: Under our names; those that are none of the model's do not count.
        source: What the user calls them.

    Raises:
        ValueError: Weights are integers, NaN or infinite, each named.
    """
    ours = {name: array for name, array in weights.items() if name.startswith(_PARTS)}
    integers = [name for name, array in ours.items() if not _is_floating(array)]
    if integers:
        raise ValueError(
            f"{len(integers)} weights of {source} are no floating-point numbers: "
            f"{_few(integers)}. Quantised weights have to be turned back first."
        )
    damaged = [name for name, array in ours.items() if not _is_finite(array)]
    if damaged:
        raise ValueError(
            f"{len(damaged)} weights of {source} are NaN or infinite: {_few(damaged)}. The file is "
            "damaged, or its training diverged. Take an earlier checkpoint."
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _is_floating(array: Any) -> bool:
    if isinstance(array, np.ndarray):
        return "float" in array.dtype.name  # bfloat16 too, whose kind is not "f"
    return bool(array.is_floating_point())


def _is_finite(array: Any) -> bool:
    """Whether all numbers are finite; their sum tells in most cases."""
    if isinstance(array, np.ndarray):
        total = array.sum(dtype=np.float32)
        return bool(np.isfinite(total) or np.isfinite(array.astype(np.float32)).all())
    total = array.sum(dtype=torch.float32)
    return bool(torch.isfinite(total) or torch.isfinite(array.float()).all())


def _locate(source: str) -> str:
    """Folder, file or repository that a name stands for."""
    if is_preset(source):
        return preset_repository(source) or str(WEIGHTS_FOLDER / source)
    return source


def _is_path(location: str) -> bool:
    """Whether a name can only mean a file or folder: a repository has one slash and no suffix."""
    is_file_name = Path(location).suffix in (".bin", ".h5", ".pt", ".pth", ".safetensors")
    return is_file_name or os.path.isabs(location) or location.count(os.sep) != 1


def _weight_files(location: str, hub: dict[str, Any]) -> list[str]:
    """Local paths of a folder's or repository's weights, one path a shard."""
    optional = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": True,
    }
    for name in (SAFETENSORS, SAFETENSORS_INDEX, _PICKLE):
        path = cached_file(location, name, **hub, **optional)
        if path is None:
            continue
        if name == SAFETENSORS_INDEX:
            _check_index(path)
            return get_checkpoint_shard_files(location, path, **hub)[0]
        return [path]
    raise OSError(
        f"{location} has no {SAFETENSORS}, {SAFETENSORS_INDEX} or {_PICKLE}. Give a folder that "
        "save_pretrained has written, a Hub repository, a .pth file, or one of the presets "
        f"{', '.join(PRESETS)}."
    )


def _check_index(path: str) -> None:
    """Refuses an index that names no files, or files beyond its folder.

    Raises:
        ValueError: It is no JSON object with a "weight_map" of names to files beside it.
    """
    try:
        index = json.loads(Path(path).read_text())
    except (RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not JSON: {type(error).__name__}.") from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files or "metadata" not in index:
        raise ValueError(
            f'{path} must be an object with "metadata" and a "weight_map", the file of each weight.'
        )
    for file in files.values():
        name = file if isinstance(file, str) else ""
        if not name or PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
            raise ValueError(
                f"{path} must name files beside it, got {file!r}. Nothing outside its folder is "
                "read."
            )


def read_weights(paths: Iterable[str | os.PathLike[str]], framework: str = "pt") -> Weights:
    """Weights of some files, safetensors, PyTorch's or Keras' HDF5, whatever their names.

    A PyTorch file is read without running anything that it might contain.

    Args:
        paths: The files, shards of one model.
        framework: "pt" for PyTorch tensors, "np" for numpy arrays.

    Raises:
        OSError: A file cannot be read.
        ValueError: A PyTorch file does not hold weights.
        ImportError: A PyTorch or HDF5 file, but what reads it is not installed.
    """
    readers = {".safetensors": _read_safetensors, ".h5": _read_hdf5}
    weights: Weights = {}
    for path in paths:
        weights.update(readers.get(Path(path).suffix, _read_pickle)(path, framework))
    return weights


def _read_hdf5(path: str | os.PathLike[str], framework: str) -> Weights:
    """Every array of floating-point numbers in a file, by its path in there."""
    if h5py is None:
        raise ImportError(f"{path} is an HDF5 file. Reading it needs `pip install h5py`.")
    weights: Weights = {}

    def keep(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f":
            array = np.asarray(item)
            weights[name] = _pytorch().from_numpy(array) if framework == "pt" else array

    try:
        with h5py.File(path) as file:
            file.visititems(keep)
    except OSError as error:
        raise OSError(f"{path} is not an HDF5 file, or is cut off: {error}.") from error
    return weights


def _read_safetensors(path: str | os.PathLike[str], framework: str) -> Weights:
    try:
        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise OSError(
            f"{path} is not a safetensors file, or is cut off: {error}. Download it again."
        ) from error


def _pytorch() -> Any:
    """PyTorch, None where it is not installed; imported when a file needs it, not by TensorFlow."""
    try:
        import torch
    except ImportError:
        return None
    return torch


def _read_pickle(path: str | os.PathLike[str], framework: str) -> Weights:
    torch = _pytorch()
    if torch is None:
        raise ImportError(
            f"{path} is a PyTorch file and PyTorch is not installed. Convert it where it is: "
            "SegmentAnythingModel.from_pretrained(path).save_pretrained(folder)."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        raise OSError(
            f"{path} cannot be read as PyTorch weights; nothing of it was run. "
            f"It is damaged, or holds more than tensors ({type(error).__name__})."
        ) from error
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(
        isinstance(w, torch.Tensor) for w in state.values()
    ):
        raise ValueError(f"{path} holds no dictionary of tensors, but {type(state).__name__}.")
    weights = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return weights if framework == "pt" else {n: _to_numpy(w) for n, w in weights.items()}
