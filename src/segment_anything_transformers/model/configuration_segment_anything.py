"""Configuration of Segment Anything models and the presets that are known by name."""

import os
from collections.abc import Callable, Mapping
from math import isfinite
from numbers import Real
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from .huggingface_sam import config_fields_from_huggingface
from .remote_code import CarriesCode

ENCODER_NORM_EPS: dict[str, float] = {
    "layer_norm": 1e-5,
    "layer_norm_eps_1e-5": 1e-5,
    "layer_norm_eps_1e-6": 1e-6,
}
"""Names that `encoder_norm_layer` may take, with the epsilon that each one means."""

ENCODER_ACTIVATIONS: tuple[str, ...] = (
    "gelu",
    "gelu_tanh",
    "hard_swish",
    "mish",
    "relu",
    "relu6",
    "silu",
    "swish",
)
"""Names that `encoder_act_layer` may take; each framework's model file maps them to functions."""

ENCODER_TYPES: tuple[str, ...] = ("vit", "tiny_vit")
"""Names that `encoder_type` may take: a vision transformer, and TinyViT (arXiv:2207.10666)."""

TINY_VIT_STRIDES = (2, 2, 1)
"""By how much each of TinyViT's stages but the last one narrows the grid for the next."""

MASK_UPSCALING = 4
"""Side of the low-resolution masks over the side of the image embeddings: H' = 4 H''."""

DECODER_DOWNSAMPLING = 2
"""Width of the embeddings over the width inside the decoder's cross-attention."""

PADDING = -10
"""Label of a padded point, and each coordinate of a padded box: such a prompt does not exist."""

FOCAL_WEIGHT = 20.0
DICE_WEIGHT = 1.0
IOU_WEIGHT = 1.0
FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
"""The loss: weights of its three terms, and the focal loss's balance and exponent."""

BOX_NOISE = 0.1
BOX_NOISE_LIMIT = 20.0
"""Standard deviation of a drawn box's edges, as a share of its side, and the most in pixels."""

_HUB = "https://huggingface.co/"

PRESETS: dict[str, dict[str, Any]] = {
    "sam_vit_t": {
        "fixed_input_size": False,
        "embed_dim": 128,
        "encoder_embed_dim": 192,
        "encoder_nb_blocks": 8,
        "encoder_nb_heads": 6,
        "encoder_global_attn_indices": (1, 4, 7),
        "encoder_window_size": 8,
        "decoder_nb_heads": 4,
        "decoder_mlp_channels": 512,
        "decoder_iou_hidden_dim": 128,
    },
    "mobile_sam": {
        "url": _HUB + "dhkim2810/MobileSAM",
        "encoder_type": "tiny_vit",
        "encoder_norm_layer": "layer_norm",
        "encoder_stage_widths": (64, 128, 160, 320),
        "encoder_stage_depths": (2, 2, 6, 2),
        "encoder_stage_heads": (4, 5, 10),
        "encoder_stage_windows": (7, 14, 7),
        "first_conv": "image_encoder/patch_embed/seq/0",
    },
    "sam_vit_b": {"url": _HUB + "facebook/sam-vit-base"},
    "sam_vit_l": {
        "url": _HUB + "facebook/sam-vit-large",
        "encoder_embed_dim": 1024,
        "encoder_nb_blocks": 24,
        "encoder_nb_heads": 16,
        "encoder_global_attn_indices": (5, 11, 17, 23),
    },
    "sam_vit_h": {
        "url": _HUB + "facebook/sam-vit-huge",
        "encoder_embed_dim": 1280,
        "encoder_nb_blocks": 32,
        "encoder_nb_heads": 16,
        "encoder_global_attn_indices": (7, 15, 23, 31),
    },
}
"""What each named model sets differently from the defaults of the configuration.

The weights of `sam_vit_t` lie inside the package; `url` names the Hub repository of the others.
"""

PRESET_FILES: dict[str, tuple[str, str]] = {
    "mobile_sam": (
        "mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    )
}
"""Name and SHA-256 of the file of weights in a repository that is not made for Transformers."""

GENERATOR_THRESHOLDS: dict[str, dict[str, Any]] = {
    "sam_vit_t": {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.5}
}
"""Arguments of the mask generator for models that are less sure of themselves than Meta's, by name.
Its defaults are made for Meta's; what finds everything without being told how takes these."""


def list_presets() -> list[str]:
    """Names that `from_preset` and `from_pretrained` know, the smallest model first."""
    return list(PRESETS)


def is_preset(source: str) -> bool:
    """Whether a source of weights or settings is a preset, and not a folder with its name."""
    return source in PRESETS and not os.path.isdir(source)


def preset_repository(name: str) -> str | None:
    """Hub repository of a preset's weights, None for the weights inside the package."""
    return PRESETS[name].get("url", "").removeprefix(_HUB) or None


class SegmentAnythingModelConfig(CarriesCode, PreTrainedConfig):
    """Everything that defines a Segment Anything model: the specification's names and defaults.

    The defaults are those of `sam_vit_b`. Sizes are (height, width) in pixels. Every combination is
    checked when the configuration is made.

    Args:
        name: Name of the model.
        url: URL of the pretrained weights.
        in_channels: Number of image channels C.
        input_size: Size (H, W) of the images that the model takes.
        fixed_input_size: If True the model takes no other size than `input_size`; if False it
            resamples its position encodings for any size that `encoder_patch_size` divides.
        embed_dim: Width D that image and prompt embeddings share.
        nb_multimask_outputs: Number of masks K for one prompt when several are asked for.
        mask_threshold: Logits above it belong to the mask.
        encoder_patch_size: Side of the square patches, in pixels; of "tiny_vit" the stride, 16.
        encoder_embed_dim: Width of the tokens of "vit".
        encoder_nb_blocks: Number of the attention blocks of "vit".
        encoder_nb_heads: Number of heads in each of them.
        encoder_mlp_ratio: Hidden width of the encoder's perceptrons over the width of its tokens.
        encoder_drop_rate: Dropout after the projections and the perceptrons, of "vit" after the
            patch embedding as well.
        encoder_attn_drop_rate: Dropout on the attention weights.
        encoder_drop_path_rate: Stochastic depth at the last block; it grows linearly from 0 at the
            first.
        encoder_norm_layer: Layer norm of the encoder's blocks, a key of `ENCODER_NORM_EPS`.
        encoder_act_layer: Activation of the encoder's perceptrons, one of `ENCODER_ACTIVATIONS`.
        encoder_qkv_bias: Whether queries, keys and values have a bias.
        encoder_global_attn_indices: Blocks of "vit" that attend to the whole image; the others
            attend in windows.
        encoder_window_size: Side of their windows, in patches; 0 makes every block global.
        prompt_mask_hidden_dim: Width of the network that embeds mask prompts.
        decoder_nb_blocks: Number of the decoder's two-way attention blocks.
        decoder_nb_heads: Number of heads in each of them.
        decoder_mlp_channels: Hidden width of their perceptrons.
        decoder_iou_head_depth: Number of layers of the head that predicts the masks' quality.
        decoder_iou_hidden_dim: Hidden width of that head.
        mean: Mean of each channel for pixel values in [0, 1]; three values serve any number of
            channels, repeated in order.
        std: Standard deviation of each channel, likewise.
        first_conv: Name of the layer whose weights are folded or repeated when pretrained weights
            have another number of channels.
        encoder_type: Kind of image encoder: "vit", a vision transformer, or "tiny_vit", stages of
            convolutions and of attention.
        encoder_stage_widths: Width of each of the four stages of "tiny_vit". This and the next
            three are MobileSAM's where they are empty, and stay empty for "vit".
        encoder_stage_depths: Number of blocks of each stage.
        encoder_stage_heads: Number of heads of each stage but the first, which does not attend.
        encoder_stage_windows: Side of the windows of each stage but the first, in tokens.

    Raises:
        TypeError: A value has a type that its field cannot take.
        ValueError: A name is unknown, or values contradict each other.
    """

    model_type = "segment_anything"
    auto_names = ("AutoConfig", "AutoModel", "AutoModelForMaskGeneration", "TFAutoModel")
    initializer_range: ClassVar[float] = 0.02
    scale: ClassVar[float] = 1.0
    """Standard deviation of the position encoding's frequencies, when these are drawn."""

    name: str = ""
    url: str = ""
    in_channels: int = 3
    input_size: tuple[int, int] = (1024, 1024)
    fixed_input_size: bool = True
    embed_dim: int = 256
    nb_multimask_outputs: int = 3
    mask_threshold: float = 0.0
    encoder_patch_size: int = 16
    encoder_embed_dim: int = 768
    encoder_nb_blocks: int = 12
    encoder_nb_heads: int = 12
    encoder_mlp_ratio: float = 4.0
    encoder_drop_rate: float = 0.0
    encoder_attn_drop_rate: float = 0.0
    encoder_drop_path_rate: float = 0.0
    encoder_norm_layer: str = "layer_norm_eps_1e-6"
    encoder_act_layer: str = "gelu"
    encoder_qkv_bias: bool = True
    encoder_global_attn_indices: tuple[int, ...] = (2, 5, 8, 11)
    encoder_window_size: int = 14
    prompt_mask_hidden_dim: int = 16
    decoder_nb_blocks: int = 2
    decoder_nb_heads: int = 8
    decoder_mlp_channels: int = 2048
    decoder_iou_head_depth: int = 3
    decoder_iou_hidden_dim: int = 256
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    first_conv: str = "image_encoder/patch_embed/proj"
    encoder_type: str = "vit"
    encoder_stage_widths: tuple[int, ...] = ()
    encoder_stage_depths: tuple[int, ...] = ()
    encoder_stage_heads: tuple[int, ...] = ()
    encoder_stage_windows: tuple[int, ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        """Turns lists, as JSON has them, into tuples, and checks every field."""
        for field in ("input_size", "encoder_global_attn_indices", "mean", "std", *_STAGE_FIELDS):
            setattr(self, field, _as_tuple(field, getattr(self, field)))
        if self.encoder_type == "tiny_vit":
            _complete_tiny_vit(self)
        # A saved dictionary carries these two; kept as attributes they would make a loaded
        # configuration differ from the one that was saved.
        kwargs.pop("model_type", None)
        self.transformers_version = None
        super().__post_init__(**kwargs)
        _check_fields(self)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "SegmentAnythingModelConfig":
        """Configuration of a named model, with some fields replaced.

        Args:
            name: One of `list_presets()`.
            overrides: Fields of the configuration to replace.

        Raises:
            ValueError: The name is unknown, or an override contradicts the rest.
        """
        if name not in PRESETS:
            raise ValueError(f"Unknown preset {name!r}. The presets are {_listing(PRESETS)}.")
        return cls(**{"name": name, **PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "SegmentAnythingModelConfig":
        """Configuration from a dictionary, with fields replaced by keyword.

        The base class assigns such keywords to the finished object, past every check. Here they
        take part in its making.
        """
        fields = {key: kwargs.pop(key) for key in list(kwargs) if key in cls.__annotations__}
        return super().from_dict({**config_dict, **fields}, **kwargs)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Dictionary of the configuration for a preset's name, a folder or a Hub repository.

        The configuration of a Hugging Face SAM repository (`model_type` "sam") comes back in our
        fields.
        """
        name = str(pretrained_model_name_or_path)
        if is_preset(name):
            return cls.from_preset(name).to_dict(), kwargs
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == "sam":
            config_dict = config_fields_from_huggingface(config_dict, ENCODER_NORM_EPS)
            config_dict["name"] = preset_of(config_dict)
        return config_dict, kwargs

    def grid_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Spatial size (H'', W'') of the image embeddings for an input size.

        Args:
            input_size: Size (H, W) in pixels, by default the configuration's.
        """
        height, width = input_size or self.input_size
        return height // self.encoder_patch_size, width // self.encoder_patch_size

    def mask_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Size (H', W') of mask prompts and low-resolution logits for an input size.

        Args:
            input_size: Size (H, W) in pixels, by default the configuration's.
        """
        grid_h, grid_w = self.grid_size(input_size)
        return MASK_UPSCALING * grid_h, MASK_UPSCALING * grid_w

    def encoder_hidden(self, width: int) -> int:
        """Hidden width of the encoder's perceptrons for tokens of a width."""
        return int(width * self.encoder_mlp_ratio + _ROUNDING)

    @property
    def channel_mean(self) -> tuple[float, ...]:
        """Mean of each of the C channels: `mean`, repeated in order as often as needed."""
        return _cycled(self.mean, self.in_channels)

    @property
    def channel_std(self) -> tuple[float, ...]:
        """Standard deviation of each of the C channels."""
        return _cycled(self.std, self.in_channels)


_ROUNDING = 1e-4
"""A width over another one, times that other one, may come out a little too small."""

_STAGE_FIELDS = {
    "encoder_stage_widths": len(TINY_VIT_STRIDES) + 1,
    "encoder_stage_depths": len(TINY_VIT_STRIDES) + 1,
    "encoder_stage_heads": len(TINY_VIT_STRIDES),
    "encoder_stage_windows": len(TINY_VIT_STRIDES),
}
"""Fields that only "tiny_vit" has, and how many numbers each one holds."""

_VIT_FIELDS = (
    "encoder_embed_dim",
    "encoder_nb_blocks",
    "encoder_nb_heads",
    "encoder_global_attn_indices",
    "encoder_window_size",
)
"""Fields that only "vit" has."""

_TELLING_FIELDS = ("embed_dim", *_VIT_FIELDS[:3], *_STAGE_FIELDS)


def preset_of(fields: Mapping[str, Any]) -> str:
    """Name of the preset that has the widths and depths of a model, "" if none has.

    Args:
        fields: Fields of a configuration; what is missing has its default.
    """

    def telling(given: Mapping[str, Any]) -> list[Any]:
        values = (given.get(n, getattr(SegmentAnythingModelConfig, n)) for n in _TELLING_FIELDS)
        return [list(value) if isinstance(value, tuple) else value for value in values]

    names = (name for name, preset in PRESETS.items() if telling(preset) == telling(fields))
    return next(names, "")


def _cycled(values: tuple[float, ...], length: int) -> tuple[float, ...]:
    return tuple(values[index % len(values)] for index in range(length))


def _listing(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _as_tuple(field: str, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{field} must be a tuple of numbers, got {value!r}.")
    return tuple(value)


_POSITIVE_FIELDS = (
    "in_channels",
    "embed_dim",
    "nb_multimask_outputs",
    "encoder_patch_size",
    "encoder_embed_dim",
    "encoder_nb_blocks",
    "encoder_nb_heads",
    "prompt_mask_hidden_dim",
    "decoder_nb_blocks",
    "decoder_nb_heads",
    "decoder_mlp_channels",
    "decoder_iou_head_depth",
    "decoder_iou_hidden_dim",
)
_TEXT_FIELDS = ("name", "url", "encoder_norm_layer", "encoder_act_layer", "first_conv")
_SWITCH_FIELDS = ("fixed_input_size", "encoder_qkv_bias")
_NUMBER_FIELDS = ("mask_threshold", "encoder_mlp_ratio")
_RATE_FIELDS = ("encoder_drop_rate", "encoder_attn_drop_rate", "encoder_drop_path_rate")


def _complete_tiny_vit(config: SegmentAnythingModelConfig) -> None:
    """What was left at a default that means nothing for TinyViT becomes as MobileSAM has it."""
    preset = PRESETS["mobile_sam"]
    for field in _STAGE_FIELDS:
        if getattr(config, field) == ():
            setattr(config, field, preset[field])
    if config.first_conv == SegmentAnythingModelConfig.first_conv:
        config.first_conv = preset["first_conv"]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def _check_types(config: SegmentAnythingModelConfig) -> None:
    """Text, switches and numbers; integers are checked with their range."""
    kinds: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
        ("text", lambda value: isinstance(value, str), _TEXT_FIELDS),
        ("True or False", lambda value: isinstance(value, bool), _SWITCH_FIELDS),
        ("a finite number", _is_finite_number, (*_NUMBER_FIELDS, *_RATE_FIELDS)),
        ("a tuple of finite numbers", lambda v: all(map(_is_finite_number, v)), ("mean", "std")),
    )
    for expected, fits, fields in kinds:
        for field in fields:
            value = getattr(config, field)
            if not fits(value):
                raise TypeError(f"{field} must be {expected}, got {value!r}.")


def _check_fields(config: SegmentAnythingModelConfig) -> None:
    _check_types(config)
    for field in _POSITIVE_FIELDS:
        value = getattr(config, field)
        if not _is_integer(value):
            raise TypeError(f"{field} must be an integer, got {value!r}.")
        if value < 1:
            raise ValueError(f"{field} must be at least 1, got {value}.")
    for field in _RATE_FIELDS:
        if not 0.0 <= getattr(config, field) < 1.0:
            raise ValueError(f"{field} must lie in [0, 1), got {getattr(config, field)}.")
    _check_named(config, "encoder_norm_layer", ENCODER_NORM_EPS)
    _check_named(config, "encoder_act_layer", ENCODER_ACTIVATIONS)
    _check_named(config, "encoder_type", ENCODER_TYPES)
    _check_sizes(config)
    _check_blocks(config)
    if config.encoder_type == "tiny_vit":
        _check_tiny_vit(config)
    else:
        _check_no_stages(config)
    _check_widths(config)
    _check_channels(config)


def _check_named(config: SegmentAnythingModelConfig, field: str, known: Any) -> None:
    value = getattr(config, field)
    if value not in known:
        raise ValueError(f"Unknown {field} {value!r}. The names are {_listing(known)}.")


def _check_sizes(config: SegmentAnythingModelConfig) -> None:
    size, patch = config.input_size, config.encoder_patch_size
    if len(size) != 2 or not all(_is_integer(side) and side > 0 for side in size):
        raise ValueError(f"input_size must be two positive integers (height, width), got {size}.")
    if any(side % patch for side in size):
        raise ValueError(
            f"input_size {size} must be a multiple of encoder_patch_size {patch} on both sides."
        )


def _check_blocks(config: SegmentAnythingModelConfig) -> None:
    indices, count = config.encoder_global_attn_indices, config.encoder_nb_blocks
    if not all(_is_integer(index) and 0 <= index < count for index in indices):
        raise ValueError(
            f"encoder_global_attn_indices must lie in 0..{count - 1} for {count} blocks, "
            f"got {indices}."
        )
    if not _is_integer(config.encoder_window_size) or config.encoder_window_size < 0:
        raise ValueError(
            "encoder_window_size must be an integer, 0 (every block is global) or more, "
            f"got {config.encoder_window_size!r}."
        )
    if config.encoder_mlp_ratio <= 0:
        raise ValueError(f"encoder_mlp_ratio must be positive, got {config.encoder_mlp_ratio}.")


def _check_no_stages(config: SegmentAnythingModelConfig) -> None:
    for field in _STAGE_FIELDS:
        if getattr(config, field):
            raise ValueError(
                f"{field} is a field of encoder_type 'tiny_vit', got {getattr(config, field)} with "
                f"{config.encoder_type!r}. Leave it out, or set encoder_type."
            )


def _check_tiny_vit(config: SegmentAnythingModelConfig) -> None:
    for field in (*_VIT_FIELDS, "encoder_patch_size"):
        value, default = getattr(config, field), getattr(SegmentAnythingModelConfig, field)
        if value != default:
            raise ValueError(
                f"{field} is a field of encoder_type 'vit', and {default} stands there with "
                f"'tiny_vit', got {value}. What its stages have is in {_listing(_STAGE_FIELDS)}."
            )
    for field, count in _STAGE_FIELDS.items():
        values = getattr(config, field)
        if len(values) != count or not all(_is_integer(value) and value > 0 for value in values):
            raise ValueError(f"{field} must be {count} positive integers, got {values}.")
    first, *widths = config.encoder_stage_widths
    if first % 2:
        raise ValueError(f"The first of encoder_stage_widths must be even, got {first}.")
    for width, heads in zip(widths, config.encoder_stage_heads, strict=True):
        if width % heads:
            raise ValueError(
                f"Each of encoder_stage_widths but the first must be a multiple of its heads, got "
                f"{config.encoder_stage_widths} and encoder_stage_heads "
                f"{config.encoder_stage_heads}."
            )


def _check_widths(config: SegmentAnythingModelConfig) -> None:
    divisors = (
        ("encoder_embed_dim", "encoder_nb_heads", config.encoder_nb_heads),
        ("embed_dim", "decoder_nb_heads times 2", DECODER_DOWNSAMPLING * config.decoder_nb_heads),
    )
    for field, reason, divisor in divisors:
        width = getattr(config, field)
        if width % divisor:
            raise ValueError(
                f"{field} {width} must be a multiple of {divisor} ({reason}), "
                f"the next one is {width + divisor - width % divisor}."
            )
    # Meta's layers divide these widths and round down; one channel has to be left.
    for field, least in (("embed_dim", 8), ("prompt_mask_hidden_dim", 4)):
        if getattr(config, field) < least:
            raise ValueError(f"{field} must be at least {least}, got {getattr(config, field)}.")


def _check_channels(config: SegmentAnythingModelConfig) -> None:
    lengths = {len(config.mean), len(config.std)}
    if len(lengths) != 1 or not lengths <= {3, config.in_channels}:
        raise ValueError(
            f"mean and std need {config.in_channels} values each (or 3, repeated in order), "
            f"got {len(config.mean)} and {len(config.std)}."
        )
    if min(config.std) <= 0:
        raise ValueError(f"std must be positive in every channel, got {config.std}.")
