"""The configuration of transformers' SamModel in our fields, and ours in its words.

One table, read in both directions; no framework and nothing of the model is needed.
"""

from collections.abc import Mapping
from typing import Any

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

HUGGINGFACE_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh", "hard_swish": "hardswish"}
"""Activations that have another name in transformers."""

_COPIES: tuple[tuple[str, str, str], ...] = (
    ("embed_dim", "prompt_encoder_config", "hidden_size"),
    ("embed_dim", "mask_decoder_config", "hidden_size"),
    ("encoder_patch_size", "prompt_encoder_config", "patch_size"),
)
"""Fields that transformers' SamConfig holds a second time."""


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
    activations = {theirs: ours for ours, theirs in HUGGINGFACE_ACTIVATIONS.items()}
    if "encoder_act_layer" in fields:
        name = fields["encoder_act_layer"]
        fields["encoder_act_layer"] = activations.get(name, name)
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


def config_to_huggingface(config: Any, norm_layers: Mapping[str, float]) -> dict[str, Any]:
    """Dictionary of the transformers SamConfig that means the same model.

    What transformers has no field for, such as our drop rates but that of the attention, changes
    nothing but training and is left out. Its SamModel takes square images only.

    Args:
        config: Our configuration.
        norm_layers: Names of the encoder's norm layers, with the epsilon that each one means.

    Raises:
        ValueError: The image encoder is one that its SamModel does not have.
    """
    if config.encoder_type != "vit":
        raise ValueError(
            f"transformers' SamModel has no image encoder of the type {config.encoder_type!r}, "
            "only 'vit'."
        )
    parts: dict[str, dict[str, Any]] = {}
    for ours, part, theirs in (*HUGGINGFACE_FIELDS, *_COPIES):
        value = getattr(config, ours)
        value = list(value) if isinstance(value, tuple) else value
        parts.setdefault(part, {})[theirs] = value
    vision, prompt = parts["vision_config"], parts["prompt_encoder_config"]
    activation = vision["hidden_act"]
    vision["hidden_act"] = HUGGINGFACE_ACTIVATIONS.get(activation, activation)
    vision["layer_norm_eps"] = norm_layers[config.encoder_norm_layer]
    vision["mlp_dim"] = config.encoder_hidden(config.encoder_embed_dim)
    vision["num_pos_feats"] = config.embed_dim // 2
    height, width = config.input_size
    vision["image_size"] = height if height == width else [height, width]
    prompt["image_size"] = vision["image_size"]
    return {"architectures": ["SamModel"], "model_type": "sam", **parts}


_PROCESSOR_FIELDS = (
    "do_convert_rgb",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "mask_pad_size",
    "mask_size",
    "pad_size",
    "resample",
    "rescale_factor",
    "size",
)


def processor_to_huggingface(image_processor: Mapping[str, Any]) -> dict[str, Any]:
    """Dictionary for `preprocessor_config.json` that transformers and transformers.js read.

    Args:
        image_processor: Dictionary of our image processor.
    """
    fields = {name: image_processor[name] for name in _PROCESSOR_FIELDS}
    return {
        **fields,
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
    }
