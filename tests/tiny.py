"""Models small enough for every test, whose dimensions all differ so that no swap cancels out."""

from itertools import chain, compress, product

import torch

from segment_anything_transformers.model.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from tests.fake_backend import small_config

_KINDS = (("input_points", "input_labels"), ("input_boxes",), ("input_masks",))
MIXTURES = [
    tuple(chain.from_iterable(compress(_KINDS, given)))
    for given in product((True, False), repeat=len(_KINDS))
]
"""Names of the arguments that give prompts, for every mixture of their kinds."""

IMAGES, SETS, POINTS, BOXES, MASKS = 2, 3, 4, 2, 2


def square_config(**overrides) -> SegmentAnythingModelConfig:
    """As `small_config`, but square: neither Meta's nor Hugging Face's code knows another shape."""
    return small_config(**{"input_size": (88, 88), **overrides})


def shallow_config(preset: str = "sam_vit_b", **overrides) -> SegmentAnythingModelConfig:
    """A preset at its full width and size, with one block of each kind.

    Further blocks of the same kinds would show nothing else, and take four fifths of the time.
    """
    base = SegmentAnythingModelConfig.from_preset(preset)
    fields = {"encoder_nb_blocks": 2, "encoder_global_attn_indices": (1,), **overrides}
    return SegmentAnythingModelConfig.from_dict(base.to_dict(), **fields)


def tiny_vit_config(**overrides) -> SegmentAnythingModelConfig:
    """A TinyViT in which no two dimensions are equal, and whose windows need padding or none."""
    fields = {
        "input_size": (96, 64),
        "embed_dim": 32,
        "encoder_type": "tiny_vit",
        "encoder_mlp_ratio": 3.0,
        "encoder_norm_layer": "layer_norm",
        "encoder_stage_widths": (12, 20, 24, 35),
        "encoder_stage_depths": (2, 2, 1, 1),
        "encoder_stage_heads": (2, 3, 5),
        "encoder_stage_windows": (5, 4, 2),
        "prompt_mask_hidden_dim": 20,
        "decoder_nb_heads": 2,
        "decoder_mlp_channels": 28,
        "decoder_iou_hidden_dim": 36,
    }
    return SegmentAnythingModelConfig(**{**fields, **overrides})


def random_model(config: SegmentAnythingModelConfig, seed: int = 0) -> SegmentAnythingModel:
    """A model in evaluation mode in which every parameter is random, positions and norms too."""
    torch.manual_seed(seed)
    model = SegmentAnythingModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "pos" in name or "attention_biases" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def random_images(config: SegmentAnythingModelConfig, count: int = IMAGES, seed: int = 1):
    """Normalised images (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, config.in_channels, *config.input_size, generator=generator)


def random_prompts(config: SegmentAnythingModelConfig, images: int = IMAGES, seed: int = 2):
    """Points, labels, boxes and masks for `SETS` prompt sets of each image, by argument name."""
    generator = torch.Generator().manual_seed(seed)
    size_wh = torch.tensor(config.input_size[::-1])
    corners = torch.rand(images, SETS, BOXES, 2, 2, generator=generator).sort(dim=3).values
    return {
        "input_points": torch.rand(images, SETS, POINTS, 2, generator=generator) * size_wh,
        "input_labels": torch.randint(-1, 2, (images, SETS, POINTS), generator=generator),
        "input_boxes": (corners * size_wh).flatten(3),
        "input_masks": torch.randn(images, SETS, MASKS, *config.mask_size(), generator=generator),
    }
