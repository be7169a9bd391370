"""A model without weights: smooth masks and scores that depend on the click alone."""

import numpy as np

from segment_anything_transformers.model.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.prediction.backends import GoodMasks

WAVES = (
    # across, down, phase per click; high enough to leave islands and holes in the masks
    (31.0, 17.0, 5.0),
    (13.0, 41.0, 11.0),
)


def small_config(**overrides):
    """A tiny configuration in which no two dimensions that could be confused are equal."""
    fields = {
        "input_size": (96, 64),
        "embed_dim": 32,
        "nb_multimask_outputs": 3,
        "encoder_patch_size": 8,
        "encoder_embed_dim": 24,
        "encoder_nb_blocks": 2,
        "encoder_nb_heads": 3,
        "encoder_global_attn_indices": (1,),
        "encoder_window_size": 5,
        "prompt_mask_hidden_dim": 20,
        "decoder_nb_heads": 2,
        "decoder_mlp_channels": 28,
        "decoder_iou_hidden_dim": 36,
    }
    return SegmentAnythingModelConfig(**{**fields, **overrides})


def click_logits(points_xy, mask_hw, input_hw, brightness):
    """Three nested discs around each point, with ripples: (P, 3, H', W') float32."""
    x, y = (np.asarray(points_xy, np.float32).astype(np.float64) / input_hw[::-1]).T
    x, y = x[:, None, None], y[:, None, None]
    rows, columns = ((np.arange(side) + 0.5) / side for side in mask_hw)
    distance = np.hypot(columns - x, rows[:, None] - y)
    ripple = sum(
        np.sin(across * columns + phase * x) * np.cos(down * rows[:, None] + phase * y)
        for across, down, phase in WAVES
    )
    radii = [0.07 + 0.1 * k + 0.04 * np.sin(7 * x + 5 * y + k) for k in range(3)]
    logits = [60 * (radius - distance) + 11 * ripple + brightness for radius in radii]
    return np.stack(logits, axis=1).astype(np.float32)


def click_scores(points_xy, input_hw):
    """Predicted qualities (P, 3) float32 between 0.8 and 1."""
    x, y = (np.asarray(points_xy, np.float32).astype(np.float64) / input_hw[::-1]).T
    return np.stack([0.9 + 0.1 * np.sin(13 * x + 29 * y + 2 * k) for k in range(3)], axis=1).astype(
        np.float32
    )


class FakeBackend:
    """Remembers what it was given. The embedding of an image is its mean value."""

    name = "fake"
    encodes_aside = False

    def __init__(self, config):
        self.config = config
        self.encoded = []
        self.decoded = []

    def encode_images(self, pixel_values):
        self.encoded.append(pixel_values)
        return pixel_values.mean(axis=(1, 2, 3), dtype=np.float64)

    def to_numpy(self, image_embeddings):
        return np.asarray(image_embeddings)

    def from_numpy(self, image_embeddings):
        return image_embeddings

    def decode(self, image_embeddings, points, labels, boxes, masks, multimask_output):
        self.decoded.append({"points": points, "labels": labels, "boxes": boxes, "masks": masks})
        given = next(prompt for prompt in (points, boxes, masks) if prompt is not None)
        clicks = np.zeros((len(given), 2)) if points is None else points[:, 0]
        n_masks = 3 if multimask_output else 1
        input_hw = self.config.input_size
        logits = click_logits(clicks, self.config.mask_size(), input_hw, image_embeddings[0])
        return logits[:, :n_masks], click_scores(clicks, input_hw)[:, :n_masks]

    def decode_above(self, image_embeddings, points, labels, iou_threshold):
        outputs = self.decode(image_embeddings, points, labels, None, None, True)
        return GoodMasks.above(iou_threshold, *outputs)


class ColourBackend(FakeBackend):
    """Finds what has the colour of the click, or of the box's first corner; rates black low.

    Its embedding is a small image.
    """

    def encode_images(self, pixel_values):
        self.encoded.append(pixel_values)
        height, width = self.config.mask_size()
        step_y, step_x = (
            side // small
            for side, small in zip(pixel_values.shape[2:], (height, width), strict=True)
        )
        return pixel_values[:, :, ::step_y, ::step_x].copy()

    def decode(self, image_embeddings, points, labels, boxes, masks, multimask_output):
        [image] = image_embeddings
        points = boxes[..., :2] if points is None else points
        steps = np.array(self.config.input_size[::-1]) / image.shape[:0:-1]
        x, y = (points[:, 0] // steps).astype(int).T
        colours = image[:, y, x]  # (C, P)
        same = np.abs(image[:, None] - colours[..., None, None]).max(axis=0) < 1e-3
        logits = np.where(same, np.float32(9), np.float32(-9))
        scores = np.where(colours.max(axis=0) > -1, 0.95, 0.1).astype(np.float32)
        return np.repeat(logits[:, None], 3, axis=1), np.stack(
            [scores, scores - 0.5, scores * 0], 1
        )
