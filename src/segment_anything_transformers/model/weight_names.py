"""What the weights are called in other checkpoints: tables that are read in both directions.

Our names are those of Meta's checkpoints. The others are transformers' SamModel ("huggingface")
and tfimm, the specification's origin, in Keras. No framework and nothing of the model is needed.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .weight_arrays import fold_batch_norms, has_batch_norms

# ---------------------------------------------------------------------------------- Hugging Face

HUGGINGFACE_NAMES: tuple[tuple[str, str], ...] = (
    (
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.pos_embed", "vision_encoder.pos_embed"),
    ("image_encoder.blocks.{}.norm1", "vision_encoder.layers.{}.layer_norm1"),
    ("image_encoder.blocks.{}.norm2", "vision_encoder.layers.{}.layer_norm2"),
    ("image_encoder.blocks.{}", "vision_encoder.layers.{}"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("prompt_encoder.point_embeddings", "prompt_encoder.point_embed"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    *(
        (
            f"mask_decoder.transformer.layers.{{}}.norm{i}",
            f"mask_decoder.transformer.layers.{{}}.layer_norm{i}",
        )
        for i in range(1, 5)
    ),
    (
        "mask_decoder.transformer.norm_final_attn",
        "mask_decoder.transformer.layer_norm_final_attn",
    ),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
)
"""Our prefixes and those of transformers' SamModel; `{}` stands for the same number in both.

The first pair that fits a name renames it; what no pair fits has the same name in both.
"""

_HUGGINGFACE_DUPLICATE = "prompt_encoder.shared_embedding.positional_embedding"
"""A second name of the position encoding in transformers' SamModel, tied to the first."""


def huggingface_names(iou_head_depth: int) -> tuple[tuple[str, str], ...]:
    """Pairs of our and transformers' prefixes for a model.

    The layers of the small perceptrons are numbered from the first in our names; transformers
    names the first and the last apart and numbers those between from 0.

    Args:
        iou_head_depth: Number of layers of the head that predicts the masks' quality.
    """
    perceptrons = (
        ("mask_decoder.output_hypernetworks_mlps.{}", 3),
        ("mask_decoder.iou_prediction_head", iou_head_depth),
    )
    pairs = []
    for name, depth in perceptrons:
        theirs = ["proj_in", *(f"layers.{i}" for i in range(depth - 2)), "proj_out"]
        pairs += [(f"{name}.layers.{i}", f"{name}.{layer}") for i, layer in enumerate(theirs)]
    return (*pairs, *HUGGINGFACE_NAMES)


def rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """The name with its prefix replaced by the first pair whose left side fits whole parts of it.

    Args:
        name: Dotted name of a weight.
        pairs: Prefixes before and after; `{}` stands for a number that is kept.
    """
    for before, after in pairs:
        pattern = re.escape(before).replace(r"\{\}", r"(\d+)") + r"(?=\.|$)"
        match = re.match(pattern, name)
        if match:
            return after.format(*match.groups()) + name[match.end() :]
    return name


def from_huggingface(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of transformers' SamModel under our names."""
    layers = {name for name in weights if "iou_prediction_head" in name and "weight" in name}
    pairs = [(theirs, ours) for ours, theirs in huggingface_names(len(layers))]
    kept = {name: array for name, array in weights.items() if name != _HUGGINGFACE_DUPLICATE}
    return {rename(name, pairs): array for name, array in kept.items()}


def to_huggingface(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Our weights under the names of transformers' SamModel."""
    layers = {name for name in weights if "iou_prediction_head" in name and "weight" in name}
    pairs = huggingface_names(len(layers))
    return {rename(name, pairs): array for name, array in weights.items()}


# ---------------------------------------------------------------------------------------- Keras

KERAS_NAMES: tuple[tuple[str, str, int, tuple[int, ...] | None], ...] = (
    ("weight", "kernel", 4, (3, 2, 0, 1)),
    ("weight", "kernel", 2, (1, 0)),
    ("weight", "gamma", 1, None),
    ("bias", "beta", 1, None),
)
"""Last part of a name here and in Keras, number of axes, and Keras' axes in our order.

Embeddings keep the name "weight", and biases that belong to a kernel keep the name "bias".
"""

_EMBEDDINGS = ("iou_token", "mask_tokens", "no_mask_embed", "not_a_point_embed", "point_embeddings")
_TFIMM_PATH = re.compile(r"(?:.*/)?((?:image_encoder|prompt_encoder|mask_decoder)/.*?)(?::\d+)?")


def from_tfimm(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights of tfimm's SegmentAnythingModel under our names and in our axes.

    tfimm's names are ours as paths, such as `sam_vit_b/image_encoder/blocks/0/norm1/gamma:0`. What
    leads to the three parts of the model, and the number of the output, are left out.
    """
    ours = {}
    for path, array in weights.items():
        match = _TFIMM_PATH.fullmatch(path)
        module, _, last = (match[1] if match else path).rpartition("/")
        for name, theirs, ndim, axes in KERAS_NAMES:
            if last == theirs and array.ndim == ndim:
                last, array = name, array if axes is None else _permuted(array, axes)
                break
        ours[f"{module}/{last}".replace("/", ".")] = array
    return ours


def to_tfimm(weights: Mapping[str, Any], model_name: str = "sam") -> dict[str, Any]:
    """Our weights under tfimm's names and in Keras' axes.

    Args:
        weights: Names to arrays.
        model_name: What the names begin with; tfimm has the preset's name there.
    """
    norms = {name.rpartition(".")[0] for name, w in weights.items() if _is_norm(name, w)}
    theirs = {}
    for name, array in weights.items():
        module, _, last = name.rpartition(".")
        is_embedding = any(part in _EMBEDDINGS for part in module.split("."))
        for ours, keras, ndim, axes in KERAS_NAMES:
            is_kind = array.ndim == ndim and (ndim > 1 or module in norms) and not is_embedding
            if last == ours and is_kind:
                last, array = keras, array if axes is None else _permuted(array, _inverse(axes))
                break
        theirs[f"{model_name}/{module.replace('.', '/')}/{last}:0"] = array
    return theirs


def _is_norm(name: str, array: Any) -> bool:
    return name.endswith(".weight") and array.ndim == 1


def _permuted(array: Any, axes: tuple[int, ...]) -> Any:
    """The array, of numpy or of PyTorch, with its axes in another order."""
    return array.transpose(axes) if hasattr(array, "__array_interface__") else array.permute(axes)


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes.index(axis) for axis in range(len(axes)))


# ------------------------------------------------------------------------------ any of the names


def to_our_names(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights under our names, whichever of the known names they have."""
    readers: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
        "huggingface": from_huggingface,
        "tfimm": from_tfimm,
        "mobile_sam": fold_batch_norms,
        "meta": dict,
    }
    return readers[naming_of(weights)](weights)


def naming_of(weights: Iterable[str]) -> str:
    """Whose names these are: "huggingface", "tfimm", "mobile_sam", or "meta".

    Ours are "meta", with MobileSAM's encoder too.
    """
    names = list(weights)
    if any(name.startswith("vision_encoder.") for name in names):
        return "huggingface"
    if has_batch_norms(names):
        return "mobile_sam"
    return "tfimm" if any("/" in name for name in names) else "meta"
