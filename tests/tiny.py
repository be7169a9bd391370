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


def random_model(config: SegmentAnythingModelConfig, seed: int = 0) -> SegmentAnythingModel:
    """A model in evaluation mode in which every parameter is random, positions and norms too."""
    torch.manual_seed(seed)
    model = SegmentAnythingModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "pos" in name:
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
