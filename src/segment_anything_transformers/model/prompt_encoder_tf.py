"""The prompt encoder in Keras, laid out as in `prompt_encoder.py`.

Shapes: N images, P prompt sets of an image, M tokens of a prompt set, D the embedding width,
(H'', W'') the grid of image embeddings, (H', W') that of masks.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A, "Prompt encoder".
"""

import math
from typing import Any

import numpy as np
from keras import layers, ops

from .configuration_segment_anything import PADDING, SegmentAnythingModelConfig
from .layers_tf import Downscaling, Embedding, Norm, build_chain, chain, gelu, normal


class PositionEncoding(layers.Layer):
    """Random Fourier features of positions in the image (arXiv:2006.10739), always in float32."""

    def __init__(self, width: int) -> None:
        """Draws the frequencies: a (2, width / 2) matrix for x and y."""
        super().__init__(dtype="float32")
        self.width = width

    def build(self, input_shape: Any = None) -> None:
        """Draws the frequencies; they do not learn."""
        self.positional_encoding_gaussian_matrix = self.add_weight(
            shape=(2, self.width // 2),
            initializer=normal(),
            trainable=False,
            name="positional_encoding_gaussian_matrix",
        )
        self.built = True

    def call(self, points_xy: Any) -> Any:
        """Encodings (..., D) of points (..., 2) in [0, 1], x before y."""
        centred = 2.0 * points_xy - 1.0
        frequencies = ops.convert_to_tensor(self.positional_encoding_gaussian_matrix)
        # Written out: a product of matrices may be computed in a lower precision.
        angles = centred[..., :1] * frequencies[0] + centred[..., 1:] * frequencies[1]
        angles = 2.0 * math.pi * angles
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def of_grid(self, grid_h: int, grid_w: int) -> Any:
        """Encodings (H'', W'', D) of the centres of a grid's cells."""
        centres_y = (np.arange(grid_h, dtype=np.float32) + 0.5) / grid_h
        centres_x = (np.arange(grid_w, dtype=np.float32) + 0.5) / grid_w
        return self(np.stack(np.meshgrid(centres_x, centres_y), axis=-1))


class PromptEncoder(layers.Layer):
    """Embeds points and boxes as tokens and masks as a grid."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one embedding for each kind of point: background, foreground, two corners."""
        super().__init__(autocast=False)  # coordinates stay float32 in every precision
        width, hidden = config.embed_dim, config.prompt_mask_hidden_dim
        self.pe_layer = PositionEncoding(width)
        self.point_embeddings = [Embedding(1, width) for _ in range(4)]
        self.not_a_point_embed = Embedding(1, width)
        self.mask_downscaling = [
            Downscaling(hidden // 4, 2),
            Norm(),
            gelu(),
            Downscaling(hidden, 2),
            Norm(),
            gelu(),
            Downscaling(width, 1),
        ]
        self.no_mask_embed = Embedding(1, width)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.pe_layer.build()
        build_chain(self.mask_downscaling, (None, None, None, 1))
        self.built = True

    def call(
        self,
        points: Any,
        labels: Any,
        boxes: Any,
        masks: Any,
        input_hw: tuple[int, int],
    ) -> tuple[Any, Any, Any]:
        """Embeds the prompts of every prompt set.

        Args:
            points: (N, P, M1, 2) in pixels of the model input, or None.
            labels: (N, P, M1), with points only.
            boxes: (N, P, M2, 4), or None.
            masks: (N, P or 1, M3, H', W') logits, or None; a mask of NaN does not exist.
            input_hw: Size (H, W) of the model input.

        Returns:
            Tokens (N, P, M, D), None without points and boxes. Dense embeddings
            (N or 1, P or 1, H'' or 1, W'' or 1, D). Which tokens exist (N, P, M), or None.
        """
        tokens, exists = self.tokens(points, labels, boxes, input_hw)
        return tokens, self.dense(masks), exists

    def dense(self, masks: Any) -> Any:
        """Dense embeddings of masks, or of there being none, see `call`."""
        no_mask = ops.reshape(self.no_mask_embed.vectors, (1, 1, 1, 1, -1))
        return no_mask if masks is None else self._embed_masks(masks, no_mask)

    def tokens(
        self, points: Any, labels: Any, boxes: Any, input_hw: tuple[int, int]
    ) -> tuple[Any, Any]:
        """Tokens of points and boxes; a set of points without a box ends in "not a point"."""
        parts, existing = [], []
        if points is not None:
            is_point = ops.not_equal(labels, PADDING)
            lacks_box = ops.any(is_point, axis=-1, keepdims=True)
            if boxes is not None:
                has_box = ops.any(_is_box(boxes), axis=-1, keepdims=True)
                lacks_box = ops.logical_and(lacks_box, ops.logical_not(has_box))
            images, sets = ops.shape(points)[:2]
            nothing = self.not_a_point_embed.vectors[None, None]
            nothing = ops.broadcast_to(nothing, (images, sets, 1, nothing.shape[-1]))
            parts += [self._embed_points(points, labels, input_hw), nothing]
            existing += [is_point, lacks_box]
        if boxes is not None:
            parts.append(self._embed_boxes(boxes, input_hw))
            existing.append(ops.repeat(_is_box(boxes), 2, axis=-1))
        if not parts:
            return None, None
        return ops.concatenate(parts, axis=2), ops.concatenate(existing, axis=-1)

    def _embed_points(self, points: Any, labels: Any, input_hw: tuple[int, int]) -> Any:
        """Tokens (N, P, M1, D): position and kind; -1 is a point without a position."""
        background, foreground = self.point_embeddings[0].vectors, self.point_embeddings[1].vectors
        positions = ops.cast(self._encode(points, input_hw), self.compute_dtype)
        kinds = ops.expand_dims(labels, -1)
        tokens = ops.where(ops.equal(kinds, 1), positions + foreground, positions)
        tokens = ops.where(ops.equal(kinds, 0), positions + background, tokens)
        return ops.where(ops.equal(kinds, -1), self.not_a_point_embed.vectors, tokens)

    def _embed_boxes(self, boxes: Any, input_hw: tuple[int, int]) -> Any:
        """Tokens (N, P, 2 M2, D) of the left top and right bottom corners."""
        corners = ops.stack([boxes[..., :2], boxes[..., 2:]], axis=3)  # (N, P, M2, 2, 2)
        kinds = ops.concatenate(
            [self.point_embeddings[2].vectors, self.point_embeddings[3].vectors], axis=0
        )
        tokens = ops.cast(self._encode(corners, input_hw), self.compute_dtype) + kinds
        images, sets, count = ops.shape(boxes)[:3]
        return ops.reshape(tokens, (images, sets, 2 * count, tokens.shape[-1]))

    def _encode(self, points_xy: Any, input_hw: tuple[int, int]) -> Any:
        """Position encodings of pixels; half a pixel moves their corner to their centre."""
        size_wh = np.array(input_hw[::-1], np.float32)
        return self.pe_layer((ops.cast(points_xy, "float32") + 0.5) / size_wh)

    def _embed_masks(self, masks: Any, no_mask: Any) -> Any:
        """Embeddings (N, P, H'', W'', D), summed over the masks of a prompt set."""
        images, sets, count = ops.shape(masks)[:3]
        height, width = masks.shape[3:]
        exists = ops.logical_not(ops.isnan(masks[..., 0, 0]))  # (N, P, M3)
        logits = ops.cast(ops.nan_to_num(masks), self.compute_dtype)
        embeddings = chain(
            self.mask_downscaling, ops.reshape(logits, (images * sets * count, height, width, 1))
        )
        grid_shape = embeddings.shape[1:]
        flat = ops.reshape(embeddings, (images, sets, count, math.prod(grid_shape)))
        shown = ops.expand_dims(ops.cast(exists, embeddings.dtype), -1)
        summed = ops.reshape(ops.sum(flat * shown, axis=2), (images, sets, *grid_shape))
        is_given = ops.expand_dims(ops.any(exists, axis=-1), (-3, -2, -1))
        return ops.where(is_given, summed, no_mask)


def _is_box(boxes: Any) -> Any:
    """Which boxes exist: (N, P, M2) of (N, P, M2, 4)."""
    return ops.any(ops.not_equal(boxes, PADDING), axis=-1)
