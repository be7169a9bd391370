"""Training on small views that are parts of a large picture, for a model that works on the whole.

A view of 512 pixels costs an eighth of a picture of 1024. Its objects and distances in pixels are
the large picture's; what differs is where it lies. Inside a frame every position that the model
gets, of patches and of prompts, is that in the large picture.
"""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from segment_anything_transformers.model import image_encoder
from segment_anything_transformers.model.image_encoder import ImageEncoder
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.prompt_encoder import PositionEncoding


def enlarged(preset: str, size: int, attn_implementation: str) -> SegmentAnythingModel:
    """A trained model for square pictures of `size`, whose distances stay those in pixels.

    `from_pretrained` stretches distances with the picture, for one model should take any size.
    Here relative positions beyond those that it knew repeat the furthest one, and position
    encodings get higher frequencies.
    """
    small = SegmentAnythingModel.from_pretrained(preset)
    known = small.config.input_size[0]
    large = SegmentAnythingModel.from_pretrained(
        preset, input_size=(size, size), attn_implementation=attn_implementation
    )
    layer = large.prompt_encoder.pe_layer
    with torch.no_grad():
        layer.positional_encoding_gaussian_matrix.mul_(size / known)
        tables = dict(small.named_parameters())
        for name, table in large.named_parameters():
            if "rel_pos" in name:
                missing = (len(table) - len(tables[name])) // 2
                padded = F.pad(tables[name].T[None], (missing, missing), mode="replicate")
                table.copy_(padded[0].T)
    return large


class FramedImageEncoder(ImageEncoder):
    """An image encoder whose input is a part of a picture: it starts at `start_yx`, in patches."""

    start_yx: tuple[int, int]

    def _positions(self, grid_h: int, grid_w: int) -> Tensor:
        top, left = self.start_yx
        return self.pos_embed[:, top : top + grid_h, left : left + grid_w]


class FramedPositionEncoding(PositionEncoding):
    """Position encodings of points in a part of a picture."""

    start_xy: Tensor  # of the picture's size
    share: float  # of the picture's side

    def forward(self, points_xy: Tensor) -> Tensor:
        """Encodings (..., D) of points (..., 2) in [0, 1] of the part."""
        return super().forward(self.start_xy + self.share * points_xy)


def _cropped_positions(table: Tensor, size: int) -> Tensor:
    """As the model's function, with the middle of a larger table instead of all of it resampled."""
    middle = len(table) // 2
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions[None, :] + middle]


def use_frame(model: SegmentAnythingModel) -> None:
    """Makes a model's inputs parts of pictures, see `move_frame`. It can only be trained then."""
    model.image_encoder.__class__ = FramedImageEncoder
    model.prompt_encoder.pe_layer.__class__ = FramedPositionEncoding
    image_encoder._relative_positions = _cropped_positions
    move_frame(model, model.config.input_size[0], 0.0, 0.0)


def move_frame(model: SegmentAnythingModel, size: int, x: float, y: float) -> None:
    """Says where the next view of `size` pixels lies: x and y in [0, 1] of the room that it has."""
    patch, side = model.config.encoder_patch_size, model.config.input_size[0]
    room = (side - size) // patch
    left, top = round(x * room), round(y * room)
    cast(FramedImageEncoder, model.image_encoder).start_yx = (top, left)
    layer = cast(FramedPositionEncoding, model.prompt_encoder.pe_layer)
    device = layer.positional_encoding_gaussian_matrix.device
    layer.start_xy = torch.tensor([left, top], device=device) * (patch / side)
    layer.share = size / side
