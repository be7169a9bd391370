"""Weights and configurations of transformers' SamModel: what they are called there and here.

Tables and what reads them, in both directions; no framework and nothing of the model is needed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

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


HUGGINGFACE_FIELDS: tuple[tuple[str, str, str], ...] = (
    ("in_channels", "vision_config", "num_channels"),
    ("embed_dim", "vision_config", "output_channels"),
    ("nb_multimask_outputs", "mask_decoder_config", "num_multimask_outputs"),
    ("encoder_patch_size", "vision_config", "patch_size"),
    ("encoder_embed_dim", "vision_config", "hidden_size"),
    ("encoder_nb_blocks", "vision_config", "num_hidden_layers"),
    ("encoder_nb_heads", "vision_config", "num_attention_heads"),
    ("encoder_mlp_ratio", "vision_config", "mlp_ratio"),
    ("encoder_attn_drop_rate", "vision_config", "attention_dropout"),
    ("encoder_act_layer", "vision_config", "hidden_act"),
    ("encoder_qkv_bias", "vision_config", "qkv_bias"),
    ("encoder_global_attn_indices", "vision_config", "global_attn_indexes"),
    ("encoder_window_size", "vision_config", "window_size"),
    ("prompt_mask_hidden_dim", "prompt_encoder_config", "mask_input_channels"),
    ("decoder_nb_blocks", "mask_decoder_config", "num_hidden_layers"),
    ("decoder_nb_heads", "mask_decoder_config", "num_attention_heads"),
    ("decoder_mlp_channels", "mask_decoder_config", "mlp_dim"),
    ("decoder_iou_head_depth", "mask_decoder_config", "iou_head_depth"),
    ("decoder_iou_hidden_dim", "mask_decoder_config", "iou_head_hidden_dim"),
)
"""Our fields and where transformers' SamConfig keeps them; where it says nothing, ours holds."""


def config_fields_from_huggingface(
    config: Mapping[str, Any], norm_layers: Mapping[str, float]
) -> dict[str, Any]:
    """Fields of our configuration for the dictionary of a transformers SamConfig.

    Args:
        config: The dictionary; what it does not say has the same default as ours.
        norm_layers: Names of the encoder's norm layers, with the epsilon that each one means.

    Raises:
        ValueError: The configuration asks for what our model does not have.
    """
    fields: dict[str, Any] = {}
    for ours, part, theirs in HUGGINGFACE_FIELDS:
        value = (config.get(part) or {}).get(theirs)
        if value is not None:
            fields[ours] = value
    vision = config.get("vision_config") or {}
    for name in ("use_abs_pos", "use_rel_pos"):
        if not vision.get(name, True):
            raise ValueError(f"vision_config.{name} must be true, the model has no other form.")
    size = vision.get("image_size")
    if size is not None:
        fields["input_size"] = (size, size) if isinstance(size, int) else tuple(size)
    if vision.get("mlp_dim") and vision.get("hidden_size"):
        fields["encoder_mlp_ratio"] = vision["mlp_dim"] / vision["hidden_size"]
    if "layer_norm_eps" in vision:
        fields["encoder_norm_layer"] = _norm_of_eps(vision["layer_norm_eps"], norm_layers)
    return fields


def _norm_of_eps(eps: float, norm_layers: Mapping[str, float]) -> str:
    names = [name for name, value in norm_layers.items() if value == eps]
    if not names:
        raise ValueError(
            f"vision_config.layer_norm_eps must be one of {set(norm_layers.values())}, got {eps}."
        )
    return names[-1]
