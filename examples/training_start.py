"""The weights that the training of `sam_vit_t` starts from: random, but for what is known before.

Pixels begin as frequencies within a patch, and prompts begin with attention to their positions.
Both can be learned, from many thousand pictures; a start near them saves these pictures.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from segment_anything_transformers.model.configuration_segment_anything import (
    PRESETS,
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.two_way_transformer import DecoderAttention, TwoWayBlock

FREQUENCIES = (0.125, 6.0)
"""Lowest and highest frequency that `start_by_position` gives, in periods over half a picture."""

STARTS = ("patches", "positions")
"""What can be left random: see `start_by_frequency` and `start_by_position`."""

COLOUR_AXES = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (1.0, 1.0, -2.0))
"""Grey, red against green, and both against blue."""

COLOUR_SHARES = (0.6, 0.2, 0.2)
"""How many of the channels read each of `COLOUR_AXES`: colour changes more slowly than grey."""


_USUAL = PRESETS["sam_vit_t"]


class EncoderShape(NamedTuple):
    """Shape of the image encoder; the defaults are those of `sam_vit_t`."""

    width: int = _USUAL["encoder_embed_dim"]
    blocks: int = _USUAL["encoder_nb_blocks"]
    window: int = _USUAL["encoder_window_size"]

    def fields(self) -> dict[str, Any]:
        """Fields of the configuration: heads are as wide as those of `sam_vit_t`.

        The same share of the blocks sees the whole picture, evenly.
        """
        usual_in_global = len(_USUAL["encoder_global_attn_indices"])
        in_global = max(1, round(usual_in_global * self.blocks / _USUAL["encoder_nb_blocks"]))
        heads = self.width * _USUAL["encoder_nb_heads"] // _USUAL["encoder_embed_dim"]
        return {
            "encoder_embed_dim": self.width,
            "encoder_nb_heads": heads,
            "encoder_nb_blocks": self.blocks,
            "encoder_window_size": self.window,
            "encoder_global_attn_indices": tuple(
                (i + 1) * self.blocks // in_global - 1 for i in range(in_global)
            ),
        }


def initial_model(
    preset: str | None,
    encoder: str | None,
    attn_implementation: str,
    shape: EncoderShape | None = None,
    random: Sequence[str] = (),
) -> SegmentAnythingModel:
    """A trained model, or one at the start, its image encoder maybe trained.

    Args:
        preset: The trained model, or None.
        encoder: Without `preset`: a model whose image encoder alone is taken over.
        attn_implementation: "eager" or "sdpa".
        shape: Without `preset`: the image encoder's shape; None is that of `sam_vit_t`.
        random: Without `preset`: which of `STARTS` are left out.
    """
    if preset:
        return SegmentAnythingModel.from_pretrained(preset, attn_implementation=attn_implementation)
    fields = (shape or EncoderShape()).fields()
    config = SegmentAnythingModelConfig.from_preset(
        "sam_vit_t", attn_implementation=attn_implementation, **fields
    )
    model = SegmentAnythingModel(config)
    if "patches" not in random:
        start_by_frequency(model.image_encoder.patch_embed.proj.weight)
    if "positions" not in random:
        start_by_position(model)
    if encoder:
        trained = SegmentAnythingModel.from_pretrained(encoder)
        model.image_encoder.load_state_dict(trained.image_encoder.state_dict())
    return model


def cosines(size: int) -> Tensor:
    """The orthonormal basis of the discrete cosine transform: (frequencies, positions)."""
    positions = torch.arange(size)
    angles = math.pi / size * (positions + 0.5) * positions[:, None]
    basis = angles.cos() * math.sqrt(2.0 / size)
    basis[0] /= math.sqrt(2.0)
    return basis


@torch.no_grad()
def start_by_frequency(kernel: Tensor) -> None:
    """Makes each channel of the patch embedding one frequency of a patch, the lowest ones first.

    The amplitude of a picture's frequencies falls about as one over the frequency; the kernel
    makes up for that, so that all channels begin with a similar variance.

    Args:
        kernel: (C, 3, patch, patch), changed in place.
    """
    width, _, patch, _ = kernel.shape
    basis = cosines(patch)
    squared = torch.arange(patch) ** 2
    order = (squared[:, None] + squared).flatten().argsort(stable=True)
    counts = [int(share * width) for share in COLOUR_SHARES]
    counts[0] += width - sum(counts)
    channel = 0
    for axis, count in zip(COLOUR_AXES, counts, strict=True):
        colour = torch.tensor(axis) / torch.tensor(axis).norm()
        for place in order[:count].tolist():
            row, column = divmod(place, patch)
            gain = (1.0 + math.hypot(row, column)) / patch
            wave = gain * torch.outer(basis[row], basis[column])
            kernel[channel] = colour[:, None, None] * wave
            channel += 1


@torch.no_grad()
def start_by_position(model: SegmentAnythingModel) -> None:
    """Lets the decoder's cross-attention begin with positions.

    From random projections it takes many thousand prompts until a click or a box's corner is
    located. Here the position encoding gets frequencies along each axis alone, and each head reads
    some of them. Tokens look where the image has their position. The image looks at tokens of its
    own position with every second head; the others see on which side of a token they are, which
    tells the inside of a box.
    """
    matrix = model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    lowest, highest = (math.log10(frequency) for frequency in FREQUENCIES)
    frequencies = torch.logspace(lowest, highest, matrix.shape[1] // 2)
    matrix.zero_()
    for axis in (0, 1):
        matrix[axis, axis::2] = frequencies
    decoder = model.mask_decoder.transformer
    blocks = cast(list[TwoWayBlock], list(decoder.layers))
    to_image: list[DecoderAttention] = [block.cross_attn_token_to_image for block in blocks]
    to_tokens: list[DecoderAttention] = [block.cross_attn_image_to_token for block in blocks]
    for number, attention in enumerate([*to_image, decoder.final_attn_token_to_image]):
        compare_positions(attention, matrix.sum(0), number, strength=2.0, sides=False)
    for number, attention in enumerate(to_tokens):
        compare_positions(attention, matrix.sum(0), number, strength=1.5, sides=True)


def compare_positions(
    attention: DecoderAttention, frequencies: Tensor, number: int, strength: float, sides: bool
) -> None:
    """Adds to an attention's projections what makes its scores a function of the distance.

    A position encoding is the sine of each frequency, then the cosine. Sine by sine plus cosine
    by cosine is the cosine of the difference, high at equal positions. Sine by cosine minus
    cosine by sine is the sine of the difference: with `sides`, every second head has it.

    Args:
        attention: The attention to change.
        frequencies: (F,), of both axes in turn, rising.
        number: Which attention of its kind this is: the next one's heads read other frequencies.
        strength: Of the added weights.
        sides: Whether every second head tells the sides.
    """
    count = len(frequencies)
    query, key = attention.q_proj.weight, attention.k_proj.weight
    width = query.shape[0] // attention.heads
    groups = count // (width // 2)
    for weight in (query, key):
        weight.mul_(0.3)
    for head in range(attention.heads):
        group = (head + number * attention.heads) % groups
        columns = torch.arange(count).view(-1, groups, 2)[:, group].flatten()
        rows = head * width + torch.arange(0, width, 2)
        if sides and head % 2:
            slope = strength * (0.5 / frequencies[columns]).clamp(max=1.0).sqrt()
            key[rows, columns + count] += slope
            key[rows + 1, columns] -= slope
        else:
            slope = torch.full_like(frequencies[columns], strength)
            key[rows, columns] += slope
            key[rows + 1, columns + count] += slope
        query[rows, columns] += slope
        query[rows + 1, columns + count] += slope
