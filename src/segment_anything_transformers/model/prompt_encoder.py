"""The prompt encoder: points and boxes as tokens, masks as a grid.

Shapes: N images, P prompt sets of an image, M tokens of a prompt set, D the embedding width,
(H'', W'') the grid of image embeddings, (H', W') that of masks.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A, "Prompt encoder".
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .configuration_segment_anything import PADDING, SegmentAnythingModelConfig
from .layers import LayerNorm2d, device_of, is_traced, vectors


class PositionEncoding(nn.Module):
    """Random Fourier features of positions in the image (arXiv:2006.10739), always in float32."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int, scale: float = 1.0) -> None:
        """Draws the frequencies, with this standard deviation: a (2, width / 2) matrix."""
        super().__init__()
        self.scale = scale
        frequencies = scale * torch.randn(2, width // 2)
        self.register_buffer("positional_encoding_gaussian_matrix", frequencies)

    def forward(self, points_xy: Tensor) -> Tensor:
        """Encodings (..., D) of points (..., 2) in [0, 1], x before y."""
        frequencies = self.positional_encoding_gaussian_matrix.float()
        with torch.autocast(points_xy.device.type, enabled=False):
            angles = 2.0 * math.pi * ((2.0 * points_xy.float() - 1.0) @ frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def of_grid(self, grid_h: int, grid_w: int) -> Tensor:
        """Encodings (H'', W'', D) of the centres of a grid's cells."""
        device = device_of(self.positional_encoding_gaussian_matrix)
        centres_y = (torch.arange(grid_h, device=device) + 0.5) / grid_h
        centres_x = (torch.arange(grid_w, device=device) + 0.5) / grid_w
        return self(torch.stack(torch.meshgrid(centres_x, centres_y, indexing="xy"), dim=-1))


class PromptEncoder(nn.Module):
    """Embeds points and boxes as tokens and masks as a grid."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one embedding for each kind of point: background, foreground, two corners."""
        super().__init__()
        width, hidden = config.embed_dim, config.prompt_mask_hidden_dim
        self.pe_layer = PositionEncoding(width, config.scale)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, hidden // 4, kernel_size=2, stride=2),
            LayerNorm2d(hidden // 4),
            nn.GELU(),
            nn.Conv2d(hidden // 4, hidden, kernel_size=2, stride=2),
            LayerNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, width)
        self.input_hw = config.input_size
        self.grid_hw = config.grid_size()

    def forward(
        self,
        points: Tensor | tuple[Tensor, Tensor] | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        input_hw: tuple[int, int] | None = None,
    ) -> tuple[Any, ...]:
        """Embeds the prompts of every prompt set.

        Without `input_hw` this is the call of Meta's code, `prompt_encoder(points=(points, labels),
        boxes=boxes, masks=masks)`, with the prompts of one image and of the configuration's size:
        (P, M1, 2) points, (P, M1) labels, (P, 4) boxes, (P, 1, H', W') masks. It returns tokens
        (P, M, D) and dense embeddings (P, D, H'', W'').

        Args:
            points: (N, P, M1, 2) in pixels of the model input, or None.
            labels: (N, P, M1), with points only.
            boxes: (N, P, M2, 4), or None.
            masks: (N, P or 1, M3, H', W') logits, or None; a mask of NaN does not exist.
            input_hw: Size (H, W) of the model input.

        Returns:
            Tokens (N, P, M, D), None without points and boxes. Dense embeddings
            (N, P or 1, D, H'' or 1, W'' or 1). Which tokens exist (N, P, M), None if all do.
        """
        if input_hw is None:
            return self._of_one_image(points, labels, boxes, masks)
        assert not isinstance(points, tuple)
        tokens, exists = self._tokens(points, labels, boxes, input_hw)
        dense = vectors(self.no_mask_embed)[None, None, 0, :, None, None]  # (1, 1, D, 1, 1)
        if masks is not None:
            dense = self._embed_masks(masks, dense)
        return tokens, dense, exists

    def _of_one_image(
        self,
        points: Tensor | tuple[Tensor, Tensor] | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """The call of Meta's code, see `forward`."""
        if isinstance(points, (tuple, list)):
            points, labels = points
        if points is not None and labels is None:
            raise ValueError("points need labels: prompt_encoder(points=(points, labels)).")
        sets = next((len(given) for given in (points, boxes, masks) if given is not None), 1)
        tokens, dense, exists = self(
            None if points is None else points[None],
            None if labels is None else labels[None],
            None if boxes is None else boxes.reshape(1, sets, -1, 4),
            None if masks is None else masks[None],
            self.input_hw,
        )
        if tokens is None:
            tokens = dense.new_zeros(1, sets, 0, dense.shape[2])
        elif exists is not None:  # "not a point" ends points alone
            tokens = tokens[:, :, exists.any(0).any(0)]
        return tokens[0], dense[0].expand(sets, -1, *self.grid_hw)

    def get_dense_pe(self) -> Tensor:
        """Position encodings (1, D, H'', W'') of the grid of the configuration's input size."""
        return self.pe_layer.of_grid(*self.grid_hw).permute(2, 0, 1)[None]

    def _tokens(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        input_hw: tuple[int, int],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of points and boxes; a set of points without a box ends in "not a point"."""
        parts, existing = [], []
        if points is not None and labels is not None:
            is_point = labels != PADDING
            # A graph may be asked without points, and ONNX Runtime reduces nothing to nothing.
            padded = nn.functional.pad(is_point, (0, 1)) if is_traced() else is_point
            lacks_box = padded.any(-1, keepdim=True)
            if boxes is not None:
                lacks_box = lacks_box & ~_is_box(boxes).any(-1, keepdim=True)
            nothing = vectors(self.not_a_point_embed).expand(*labels.shape[:2], 1, -1)
            parts += [self._embed_points(points, labels, input_hw), nothing]
            existing += [is_point, lacks_box]
        if boxes is not None:
            parts.append(self._embed_boxes(boxes, input_hw))
            existing.append(_is_box(boxes).repeat_interleave(2, dim=-1))
        if not parts:
            return None, None
        exists = torch.cat(existing, dim=-1)
        if not is_traced() and bool(exists.all()):
            return torch.cat(parts, dim=2), None
        return torch.cat(parts, dim=2), exists

    def _embed_points(self, points: Tensor, labels: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Tokens (N, P, M1, D): position and kind; -1 is a point without a position."""
        background, foreground = self._kind(0), self._kind(1)
        positions = self._encode(points, input_hw).to(foreground.dtype)
        kinds = labels[..., None]
        tokens = torch.where(kinds == 1, positions + foreground, positions)
        tokens = torch.where(kinds == 0, positions + background, tokens)
        return torch.where(kinds == -1, vectors(self.not_a_point_embed), tokens)

    def _embed_boxes(self, boxes: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Tokens (N, P, 2 M2, D) of the left top and right bottom corners."""
        kinds = torch.cat([self._kind(2), self._kind(3)])
        corners = self._encode(boxes.unflatten(-1, (2, 2)), input_hw)  # (N, P, M2, 2, D)
        return (corners.to(kinds.dtype) + kinds).flatten(2, 3)

    def _kind(self, index: int) -> Tensor:
        """Embedding (1, D) of a kind of point: background, foreground, left top, right bottom."""
        return vectors(self.point_embeddings[index])

    def _encode(self, points_xy: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Position encodings of pixels; half a pixel moves their corner to their centre."""
        size_wh = torch.tensor(input_hw[::-1], device=points_xy.device, dtype=torch.float32)
        return self.pe_layer((points_xy.float() + 0.5) / size_wh)

    def _embed_masks(self, masks: Tensor, no_mask: Tensor) -> Tensor:
        """Embeddings (N, P, D, H'', W''), summed over the masks of a prompt set."""
        exists = ~masks[..., 0, 0].isnan()  # (N, P, M3)
        logits = masks.nan_to_num().to(no_mask.dtype).flatten(0, 2)[:, None]
        embeddings = self.mask_downscaling(logits).unflatten(0, masks.shape[:3])
        embeddings = (embeddings * exists[..., None, None, None]).sum(2)
        return torch.where(exists.any(-1)[..., None, None, None], embeddings, no_mask)


def _is_box(boxes: Tensor) -> Tensor:
    """Which boxes exist: (N, P, M2) of (N, P, M2, 4)."""
    return (boxes != PADDING).any(-1)
