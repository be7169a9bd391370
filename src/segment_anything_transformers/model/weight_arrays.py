"""Weights as arrays, of numpy or of PyTorch, that are fitted to a model.

Three rules, each in one place: another number of channels or another input size (`adapt_weights`),
and batch norms, which TinyViT's checkpoints have and our model does not (`fold_batch_norms`).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .configuration_segment_anything import SegmentAnythingModelConfig
from .mask_ops import bilinear_matrix

Weights = dict[str, Any]
"""Names to arrays, of numpy or of PyTorch."""

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
    array = to_numpy(kernel)
    if channels == 1:
        return _like(array.sum(1, keepdims=True), kernel)
    repeated = array[:, [channel % given for channel in range(channels)]]
    return _like(repeated * (given / channels), kernel)


def _resample_axis(array: Any, axis: int, length: int) -> Any:
    if array.shape[axis] == length:
        return array
    matrix = bilinear_matrix(array.shape[axis], length)
    resampled = np.moveaxis(np.tensordot(matrix, to_numpy(array), (1, axis)), 0, axis)
    return _like(resampled, array)


# ---------------------------------------------------------------------------------- batch norms

_KERNEL, _NORM = ".c.weight", ".bn."
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_NORM_EPS = 1e-5
_NORMED_PARTS = ("image_encoder.patch_embed.", "image_encoder.layers.")
_CLASSIFIER = ("image_encoder.norm_head.", "image_encoder.head.")
_CLASSES = 1000


def has_batch_norms(names: Any) -> bool:
    """Whether these are the names of a TinyViT whose batch norms are layers, as MobileSAM's."""
    return any(_NORM in name and name.endswith(".running_var") for name in names)


def fold_batch_norms(weights: Mapping[str, Any]) -> Weights:
    """TinyViT's weights under our names: the batch norm after a convolution becomes part of it.

    The statistics are fixed when the model predicts. The convolution takes its scale into the
    kernel, and the rest is the bias. TinyViT's classifier, which Segment Anything has no use for,
    is left out.

    Args:
        weights: Names to arrays as in `mobile_sam.pt`; left unchanged.

    Raises:
        ValueError: A batch norm is not complete.
    """
    folded: Weights = {}
    for name, array in weights.items():
        if name.endswith(_KERNEL):
            layer = name.removesuffix(_KERNEL)
            folded[f"{layer}.weight"], folded[f"{layer}.bias"] = _folded(weights, layer, array)
        elif _NORM not in name and not name.startswith(_CLASSIFIER):
            folded[name] = array
    return folded


def _folded(weights: Mapping[str, Any], layer: str, kernel: Any) -> tuple[Any, Any]:
    """Kernel and bias of a convolution and the batch norm after it."""
    names = [f"{layer}{_NORM}{part}" for part in _STATISTICS]
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(f"The batch norm of {layer} lacks {', '.join(missing)}.")
    weight, bias, mean, variance = (to_numpy(weights[name]).astype(np.float64) for name in names)
    scale = weight / np.sqrt(variance + _NORM_EPS)
    scaled = to_numpy(kernel) * scale[:, None, None, None]
    return _like(scaled, kernel), _like(bias - mean * scale, kernel)


def unfold_batch_norms(weights: Mapping[str, Any]) -> Weights:
    """Our TinyViT's weights as `mobile_sam.pt` has them, for MobileSAM's own code.

    The batch norms do nothing but add the bias. The classifier, which is never asked, is zeros.

    Args:
        weights: Names to arrays; left unchanged.
    """
    unfolded: Weights = {}
    for name, array in weights.items():
        layer, _, last = name.rpartition(".")
        kernel = weights.get(f"{layer}.weight")
        is_kernel = kernel is not None and len(kernel.shape) == 4
        if not (is_kernel and name.startswith(_NORMED_PARTS)):
            unfolded[name] = array
        elif last == "weight":
            unfolded[f"{layer}{_KERNEL}"] = array
        else:
            ones = np.ones(array.shape, np.float32)
            norm = (ones, to_numpy(array), 0 * ones, ones - np.float32(_NORM_EPS))
            for part, values in zip(_STATISTICS, norm, strict=True):
                unfolded[f"{layer}{_NORM}{part}"] = _like(values, array)
            unfolded[f"{layer}{_NORM}num_batches_tracked"] = _count_like(array)
    unfolded.update(_classifier(weights["image_encoder.neck.0.weight"]))
    return unfolded


def _classifier(neck: Any) -> Weights:
    """Weights of TinyViT's classifier that MobileSAM's code wants to load."""
    width = neck.shape[1]
    norm, head = _CLASSIFIER
    return {
        f"{norm}weight": _like(np.ones(width), neck),
        f"{norm}bias": _like(np.zeros(width), neck),
        f"{head}weight": _like(np.zeros((_CLASSES, width)), neck),
        f"{head}bias": _like(np.zeros(_CLASSES), neck),
    }


# --------------------------------------------------------------------------------------- arrays


def to_numpy(array: Any) -> np.ndarray:
    """As float32 in numpy, which does not know bfloat16."""
    if isinstance(array, np.ndarray):
        return array.astype(np.float32)
    return array.detach().float().numpy()


def _like(array: np.ndarray, model: Any) -> Any:
    """As an array of the model's framework and type."""
    if isinstance(model, np.ndarray):
        return np.ascontiguousarray(array, dtype=model.dtype)
    return model.new_tensor(np.ascontiguousarray(array))


def _count_like(model: Any) -> Any:
    """A count of 0 in the model's framework."""
    if isinstance(model, np.ndarray):
        return np.zeros((), np.int64)
    return model.new_zeros(()).long()


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
    total = array.float().sum()
    return bool(total.isfinite() or array.float().isfinite().all())
