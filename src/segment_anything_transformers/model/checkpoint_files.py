"""Files of weights as people have them: read without running anything, and unwrapped.

What training code and frameworks put around the weights of a model stands in tables here, and so
does what tells the files of other models.
"""

import argparse
import collections
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .weight_arrays import Weights, to_numpy

try:
    import h5py
except ImportError:
    h5py = None

ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".h5")
"""What the names of files of weights end in."""

WRAPPERS = (
    "model",
    "state_dict",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "sam",
    "weights",
)
"""Entries of a training's file that hold the weights, beside the optimizer's and others."""

WRAPPING_PARTS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that stand for a module around a module, wherever they are."""

_PARTS = (
    "image_encoder",
    "prompt_encoder",
    "mask_decoder",
    "vision_encoder",
    "shared_image_embedding",
)
"""Parts of the model in Meta's names and in transformers'; what is before them is a prefix."""

_CONSTANTS = ("pixel_mean", "pixel_std")
"""What the image is normalised with; the image processor has it."""

_FOREIGN: tuple[tuple[str, str], ...] = (
    (r"ultralytics", "a model of ultralytics, such as FastSAM or YOLO, pickled with its code"),
    (r"^model\.\d+\.(conv|cv\d|m)\b", "a YOLO model, such as FastSAM"),
    (r"^(image_encoder\.trunk|memory_encoder|memory_attention|sam_mask_decoder)\.", "SAM 2"),
    (r"^(vision_encoder\.backbone\.blocks|memory_encoder)\.", "SAM 2 of transformers"),
    (r"\bmask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder)\b", "SAM-HQ"),
    (r"^image_encoder\.backbone\.", "EfficientViT-SAM"),
    (r"^image_encoder\.features\.", "EdgeSAM or RepViT-SAM"),
    (r"\.lora_[AB]\.|\.lora_magnitude", "an adapter, or a model with one that is not merged"),
    (r"\.(absmax|quant_map|SCB|qweight|qzeros|_packed_params.*|weight_scale)$", "quantised"),
)
"""What names, or the names of classes in a pickle, tell: a pattern, and what has it."""

_REMEDIES = {
    "quantised": "Give the file that it was made from, and quantise the loaded model",
    "an adapter, or a model with one that is not merged": (
        "Load the base model and put the adapter on it with peft.PeftModel, or merge it first"
    ),
}

# --------------------------------------------------------------------------------------- reading


def read_weights(paths: Iterable[str | os.PathLike[str]], framework: str = "pt") -> Weights:
    """Weights of some files, safetensors, PyTorch's or Keras' HDF5, whatever their names.

    A PyTorch file is read without running anything that it might contain. What a training or a
    framework wraps around the weights is taken off, see `WRAPPERS` and `unwrapped_names`.

    Args:
        paths: The files, shards of one model.
        framework: "pt" for PyTorch tensors, "np" for numpy arrays.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file does not hold weights, or those of another kind of model.
        ImportError: A PyTorch or HDF5 file, but what reads it is not installed.
    """
    readers = {".safetensors": _read_safetensors, ".h5": _read_hdf5}
    paths = list(paths)
    weights: Weights = {}
    for path in paths:
        weights.update(readers.get(Path(path).suffix, _read_pickle)(path, framework))
    _refuse_foreign(weights, str(paths[0]) if paths else "")
    return unwrapped_names(weights)


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
        with torch.serialization.safe_globals(_harmless()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever a damaged or hostile file makes the reader raise
        raise _unreadable(path, error) from error
    tensors = _tensors(state)
    if not tensors:
        raise ValueError(
            f"{path} holds no dictionary of tensors, but {_described(state)}. The weights may be "
            f"in an entry {', '.join(map(repr, WRAPPERS))}."
        )
    return tensors if framework == "pt" else {n: to_numpy(w) for n, w in tensors.items()}


def _harmless() -> list[Any]:
    """Classes of entries beside the weights, such as a best score or the options of a training."""
    numpy_scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")]
    paths = [pathlib.PosixPath, pathlib.PurePosixPath]
    others = [numpy_scalar, np.dtype, argparse.Namespace, collections.defaultdict, dict]
    return [*others, *dtypes, *paths]


def _unreadable(path: str | os.PathLike[str], error: Exception) -> Exception:
    """What to raise for a pickle that was refused."""
    told = re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error))
    kind = _foreign_kind([told[1]]) if told else None
    if kind is not None:
        return ValueError(f"{path} is no Segment Anything model: it is {kind}.")
    more = f": {told[1]}" if told else ""
    return OSError(
        f"{path} cannot be read as PyTorch weights; nothing of it was run. "
        f"It is damaged, or holds more than tensors ({type(error).__name__}{more})."
    )


def _tensors(state: Any) -> Weights:
    """The tensors of a file's content, or of the entry that wraps them; none if there is none."""
    if not isinstance(state, Mapping):
        return {}
    for wrapper in WRAPPERS:
        inside = _tensors(state.get(wrapper))
        if inside:
            return inside
    return {
        name: entry
        for name, entry in state.items()
        if isinstance(name, str) and isinstance(entry, _pytorch().Tensor)
    }


def _described(state: Any) -> str:
    if isinstance(state, Mapping):
        return f"one of {list(map(str, state))[:5]}"
    return type(state).__name__


# ----------------------------------------------------------------------------------------- names


def unwrapped_names(weights: Mapping[str, Any]) -> Weights:
    """Weights without what frameworks put into their names, and without constants.

    A prefix that leads to the parts of the model, such as `model.` or `sam.`, is taken off, and
    what does not have it, such as a loss with weights, is left out. Names of Keras are paths and
    stay as they are.

    Args:
        weights: Names to arrays.

    Raises:
        ValueError: There are several models.
    """
    if any("/" in name for name in weights):
        return dict(weights)
    pattern = re.compile(rf"((?:.*?\.)??)(?:{'|'.join(_PARTS)})\.")
    found = filter(None, map(pattern.match, weights))
    prefixes = sorted({match[1] for match in found})
    if len(prefixes) > 1 and "" not in prefixes:
        raise ValueError(
            f"The file holds several models, under {', '.join(map(repr, prefixes))}. Save the one "
            "that is meant into a file of its own."
        )
    prefix = prefixes[0] if prefixes else ""  # "" comes first
    own = {n.removeprefix(prefix): array for n, array in weights.items() if n.startswith(prefix)}
    named = {_without_wrapping(name): array for name, array in own.items()}
    return {name: array for name, array in named.items() if name not in _CONSTANTS}


def _without_wrapping(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPING_PARTS)


def _refuse_foreign(weights: Mapping[str, Any], source: str) -> None:
    """Raises a ValueError that names another kind of model."""
    names = [_without_wrapping(name) for name in weights]
    kind = _foreign_kind(names)
    if kind is None and any(_is_integer(n, w) for n, w in weights.items()):
        kind = "quantised"
    if kind is not None:
        remedy = _REMEDIES.get(kind, "Segment Anything and MobileSAM are what can be loaded")
        raise ValueError(
            f"{source} is no plain Segment Anything model: it is {kind}, as names such as "
            f"{_telling(names, kind)!r} tell. {remedy}."
        )


def _is_integer(name: str, array: Any) -> bool:
    return name.endswith(".weight") and "int" in str(array.dtype)


def _foreign_kind(names: Iterable[str]) -> str | None:
    names = list(names)
    found = (kind for pattern, kind in _FOREIGN if any(re.search(pattern, n) for n in names))
    return next(found, None)


def _telling(names: list[str], kind: str) -> str:
    """The first name that tells the kind."""
    patterns = [pattern for pattern, its in _FOREIGN if its == kind]
    return next((n for p in patterns for n in names if re.search(p, n)), names[0])
