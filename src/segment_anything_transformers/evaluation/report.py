"""An evaluation for the eye: a table, and a picture of the worst cases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from ..data.samples import Sample, Samples
from ..model.mask_ops import rle_to_mask
from ..prediction.visualization import draw_masks, draw_prompts
from .evaluation import Evaluation, ObjectQuality

_TRUTH_COLOUR, _PREDICTED_COLOUR = "#16a34a", "#3b82f6"
_PANEL, _CAPTION, _GAP = 200, 18, 8
_CONTEXT = 0.3
"""How much around an object is shown, as a share of its longer side."""


def quality_table(evaluation: Evaluation, title: str | None = None) -> Table:
    """A table with a row for each figure, and a column for all objects and for each size."""
    means = evaluation.means()
    table = Table("", title=title)
    for name, group in means.items():
        table.add_column(f"{name}\n{group['objects']:g} objects", justify="right")
    for figure in evaluation.objects[0].figures:
        cells = [f"{group[figure]:.3f}" if figure in group else "-" for group in means.values()]
        table.add_row(figure, *cells)
    correlation = evaluation.rating_correlation
    text = "-" if correlation is None else f"{correlation:.3f}"
    table.add_row("predicted against real IoU (Spearman)", text, *["-"] * (len(means) - 1))
    return table


def draw_worst(
    evaluation: Evaluation, samples: Samples, count: int = 8, figure: str = "box"
) -> Image.Image:
    """A picture of the objects with the lowest values of a figure, the worst first.

    Two panels for each: the truth in green, and in blue the single mask that the true mask's box,
    drawn in yellow, gave.

    Args:
        evaluation: What `evaluate` returned.
        samples: What it measured.
        count: Number of objects.
        figure: Name of the figure, as `Evaluation` lists them.
    """
    worst = evaluation.worst(count, figure)
    width, height = 2 * _PANEL + 3 * _GAP, _PANEL + _CAPTION + 2 * _GAP
    columns = min(2, len(worst))
    rows = -(-len(worst) // columns)
    picture = Image.new("RGB", (columns * width, rows * height), "white")
    for index, quality in enumerate(worst):
        tile = _tile(quality, samples[samples.names.index(quality.image)], figure)
        picture.paste(tile, (index % columns * width + _GAP, index // columns * height + _GAP))
    return picture


def _tile(quality: ObjectQuality, sample: Sample, figure: str) -> Image.Image:
    """Caption, true mask and predicted mask of one object."""
    tile = Image.new("RGB", (2 * _PANEL + _GAP, _PANEL + _CAPTION), "white")
    caption = f"{quality.image}, object {quality.number}: {figure} {quality.figures[figure]:.2f}"
    ImageDraw.Draw(tile).text((0, 2), caption, "black", font_size=11)
    left, top, right, bottom = _surroundings(quality.box, sample.masks.shape[1:])
    window = (slice(top, bottom), slice(left, right))
    pixels = _bytes(sample.image)[window]
    predicted = rle_to_mask(quality.box_mask)[window]
    box = np.array(quality.box) - (left, top, left, top)
    scale = _PANEL / max(pixels.shape[:2])
    truth = _panel(pixels, sample.masks[quality.number][window], _TRUTH_COLOUR, None, scale)
    tile.paste(truth, (0, _CAPTION))
    tile.paste(_panel(pixels, predicted, _PREDICTED_COLOUR, box, scale), (_PANEL + _GAP, _CAPTION))
    return tile


def _panel(
    pixels: np.ndarray, mask: np.ndarray, colour: str, box: np.ndarray | None, scale: float
) -> Image.Image:
    """A mask on its image, enlarged or shrunk first so that lines keep their width."""
    size = [max(1, round(side * scale)) for side in (pixels.shape[1], pixels.shape[0])]
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    scaled_mask = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
    drawn = draw_masks(picture, [np.asarray(scaled_mask)], [colour], opacity=0.45)
    if box is None:
        return drawn
    far_edges = np.array([0, 0, 1, 1])  # the last column and row belong to the box
    return draw_prompts(drawn, boxes=[(box + far_edges) * scale - far_edges])


def _surroundings(box: Sequence[int], size_hw: tuple[int, ...]) -> tuple[int, int, int, int]:
    """A box grown by the context, inside the image, with exclusive right and bottom."""
    left, top, right, bottom = box
    margin = max(4, round(_CONTEXT * max(right - left, bottom - top)))
    height, width = size_hw
    return (
        max(0, left - margin),
        max(0, top - margin),
        min(width, right + margin + 1),
        min(height, bottom + margin + 1),
    )


def _bytes(image: np.ndarray) -> np.ndarray:
    """The image with 8 bits a channel; floats are from 0 to 255, as everywhere."""
    if image.dtype == np.uint16:
        return (image >> 8).astype(np.uint8)
    return np.rint(image).clip(0, 255).astype(np.uint8)
