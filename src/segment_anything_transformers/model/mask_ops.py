"""Masks, boxes, run lengths and crops in numpy, shared by everything that handles SAM's output.

No framework is needed: the PyTorch model, the TensorFlow model and the exported graphs all meet
here. Boxes are (left, top, right, bottom) and points (x, y) unless a name says otherwise.

The rules (which pixel a box ends on, what counts as stable, how crops overlap) are those of
"Segment Anything" (arXiv:2304.02643, appendix B) and its published implementation, so that results
can be compared with it mask for mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

try:
    from scipy import ndimage
except ImportError:
    ndimage = None

RLE = dict[str, Any]

MAX_POINTS_PER_SIDE = 1000
"""Of a grid of clicks: a million, more than any image has objects."""
MAX_POINTS_PER_BATCH = 10_000
"""Clicks answered at once: each takes a megabyte and more."""
MAX_CROP_LAYERS = 6
"""Of crops: 5461 crops with the image itself; the smallest are a 64th of a side."""

EDGE_TOLERANCE = 20.0
"""Distance in pixels from an edge of its crop at which a mask counts as cut off."""


@lru_cache(maxsize=8)
def bilinear_matrix(source_length: int, target_length: int) -> np.ndarray:
    """The matrix that resamples one axis linearly: `matrix @ column` is the resized column.

    Pixel centres lie at half integers and no antialiasing is done, as in
    `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`. Because resampling is
    linear, resizing twice is the product of two such matrices, and cutting away padding in between
    is a selection of rows of the first.

    Returns a read-only (target_length, source_length) float32 array whose rows sum to 1. Raises
    ValueError if a length is below 1.
    """
    if source_length < 1 or target_length < 1:
        raise ValueError(f"Lengths must be at least 1, got {source_length} and {target_length}.")
    # torch computes the position in float32 with one rounding. Its rounding error is visible
    # after thresholding, so the same steps are taken here: float64 holds the product exactly.
    scale = np.float64(np.float32(source_length) / np.float32(target_length))
    position = (scale * (np.arange(target_length) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    lower = np.minimum(position.astype(np.int64), source_length - 1)
    upper = np.minimum(lower + 1, source_length - 1)
    fraction = position - lower.astype(np.float32)
    rows = np.arange(target_length)
    matrix = np.zeros((target_length, source_length), np.float32)
    matrix[rows, lower] += 1 - fraction
    matrix[rows, upper] += fraction
    matrix.setflags(write=False)  # the cache hands the same array to every caller
    return matrix


@lru_cache(maxsize=8)
def area_matrix(source_length: int, target_length: int) -> np.ndarray:
    """The matrix that resamples one axis to the mean of all the pixels that a new one touches.

    As `torch.nn.functional.interpolate(mode="area")`. Returns a read-only
    (target_length, source_length) float32 array whose rows sum to 1.
    """
    new, old = np.arange(target_length)[:, None], np.arange(source_length)[None]
    starts = new * source_length // target_length
    ends = -(-(new + 1) * source_length // target_length)
    touched = ((old >= starts) & (old < ends)).astype(np.float32)
    matrix = touched / touched.sum(axis=1, keepdims=True)
    matrix.setflags(write=False)
    return matrix


def resize_bilinear(arrays: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Arrays (..., H, W) resized linearly to `size_hw` without antialiasing, float32.

    Equals `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` up to rounding,
    for any leading axes. An array that has the size keeps its values. Raises ValueError for fewer
    than two axes, or a size below 1.
    """
    arrays = np.asarray(arrays, dtype=np.float32)
    if arrays.ndim < 2:
        raise ValueError(f"Expected an array of shape (..., H, W), got shape {arrays.shape}.")
    height, width = int(size_hw[0]), int(size_hw[1])
    if arrays.shape[-2:] == (height, width):
        return arrays
    matrix_y = bilinear_matrix(arrays.shape[-2], height)
    matrix_x = bilinear_matrix(arrays.shape[-1], width)
    # A NaN or an infinity would spread over its whole row and column.
    return matrix_y @ (arrays @ matrix_x.T)


def masks_to_boxes(masks: np.ndarray) -> np.ndarray:
    """The smallest box around each mask, in inclusive pixel indices; zeros for an empty mask.

    Takes (..., H, W) bool, returns (..., 4) int64: first column and row, last column and row.
    """
    masks = np.asarray(masks, dtype=bool)
    height, width = masks.shape[-2:]
    if height == 0 or width == 0:
        return np.zeros((*masks.shape[:-2], 4), np.int64)
    columns = np.asarray(masks.any(axis=-2))
    rows = np.asarray(masks.any(axis=-1))
    right = width - 1 - columns[..., ::-1].argmax(axis=-1)
    bottom = height - 1 - rows[..., ::-1].argmax(axis=-1)
    boxes = np.stack([columns.argmax(axis=-1), rows.argmax(axis=-1), right, bottom], axis=-1)
    return np.where(columns.any(axis=-1, keepdims=True), boxes, 0).astype(np.int64)


def stability_scores(mask_logits: np.ndarray, mask_threshold: float, offset: float) -> np.ndarray:
    """How little each mask changes when its threshold moves: the IoU of a strict and a lax mask.

    Takes logits (..., H, W), the threshold that makes the mask, and how far it is moved up and
    down. Returns (...,) float32 in [0, 1].
    """
    # The strict mask lies inside the lax one, so two counts are the intersection and the union.
    strict = np.count_nonzero(mask_logits > mask_threshold + offset, axis=(-2, -1))
    lax = np.count_nonzero(mask_logits > mask_threshold - offset, axis=(-2, -1))
    # Meta's code gives NaN when both are empty. A mask with no pixel is of no use: 0.
    return np.divide(strict, np.maximum(lax, 1), dtype=np.float32)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Width times height of boxes, (..., 4) to (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def box_iou(boxes_a: np.ndarray, boxes_b: np.ndarray) -> np.ndarray:
    """Intersection over union of every box in one list with every box in another.

    Takes (n, 4) and (m, 4), returns (n, m) float32; 0 where both boxes have no area.
    """
    boxes_a = np.asarray(boxes_a, np.float32).reshape(-1, 4)
    boxes_b = np.asarray(boxes_b, np.float32).reshape(-1, 4)
    top_left = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    bottom_right = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    extent = np.clip(bottom_right - top_left, 0, None)
    intersection = extent[..., 0] * extent[..., 1]
    union = box_areas(boxes_a)[:, None] + box_areas(boxes_b)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Indices of the boxes that no better box overlaps by an IoU above the threshold.

    Takes (n, 4) and (n,), returns (k,) int64 by falling score. Among equal scores the earlier box
    wins. Raises ValueError if there is not one score for each box.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    scores = np.asarray(scores, np.float64)
    if scores.shape != (len(boxes),):
        raise ValueError(f"Expected one score for each of {len(boxes)} boxes, got {scores.shape}.")
    waiting = np.argsort(-scores, kind="stable")
    keep = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        keep.append(best)
        overlap = box_iou(boxes[best], boxes[waiting])[0]
        # A float64 threshold: numpy would round a plain float to float32 before comparing.
        waiting = waiting[overlap <= np.float64(iou_threshold)]
    return np.asarray(keep, np.int64)


def masks_to_rles(masks: np.ndarray) -> list[RLE]:
    """Boolean masks, (n, H, W), as uncompressed run lengths in COCO's order.

    Returns one `{"size": [H, W], "counts": [...]}` a mask. Runs go down the columns; the first
    counts pixels outside the mask, and is 0 if the first pixel is inside.
    """
    masks = np.asarray(masks, dtype=bool)
    size_hw = masks.shape[1:]
    return [rle_with_list(columns_to_rle(mask.T, (0, 0), size_hw)) for mask in masks]


def columns_to_rle(columns: np.ndarray, left_top: tuple[int, int], size_hw: tuple[int, int]) -> RLE:
    """Run lengths of a mask of which only a part is given, the rest being empty.

    Takes the part by column, (w, h) bool, the place of its first pixel and the size of the whole.
    The counts are an int64 array: a ragged mask has a million of them.
    """
    (left, top), (height, width) = left_top, size_hw
    # One empty pixel below every column ends its last run there.
    padded = np.zeros((columns.shape[0], columns.shape[1] + 1), bool)
    padded[:, :-1] = columns
    pixels = padded.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    if pixels[:1].any():
        changes = np.concatenate([[0], changes])
    column, row = np.divmod(changes, padded.shape[1])
    places = (left + column) * height + top + row
    if padded.shape[1] > height:  # a run may go on at the top of the next column
        joins = np.flatnonzero(places[1::2][:-1] == places[2::2])
        places = np.delete(places, np.concatenate([2 * joins + 1, 2 * joins + 2]))
    lengths = np.diff(places, prepend=0, append=height * width)
    return {"size": [height, width], "counts": lengths if lengths[-1] else lengths[:-1]}


def rle_with_list(rle: Mapping[str, Any]) -> RLE:
    """Run lengths whose counts are a list, which can go to JSON, rather than an array."""
    return {"size": list(rle["size"]), "counts": _counts(rle).tolist()}


# COCO's text form: every number is cut into groups of five bits, lowest first. A sixth bit says
# that more groups follow; 48 is added to reach printable characters. From the fourth number on,
# the difference from the number two places earlier is stored, which is small and may be negative.
_GROUP_BITS, _GROUP, _SIGN, _MORE, _PRINTABLE = 5, 0x1F, 0x10, 0x20, 48


def _compressed(counts: Sequence[int]) -> str:
    characters = []
    for index, count in enumerate(counts):
        number, more = count - counts[index - 2] if index > 2 else count, True
        while more:
            group, number = number & _GROUP, number >> _GROUP_BITS
            more = number != (-1 if group & _SIGN else 0)
            characters.append(chr(_PRINTABLE + group + _MORE * more))
    return "".join(characters)


def _expanded(text: str) -> list[int]:
    counts: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - _PRINTABLE
        number |= (group & _GROUP) << shift
        shift += _GROUP_BITS
        if not group & _MORE:
            number -= 1 << shift if group & _SIGN else 0
            counts.append(number + counts[-2] if len(counts) > 2 else number)
            number = shift = 0
    return counts


def _counts(rle: Mapping[str, Any]) -> np.ndarray:
    counts = rle["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    return np.asarray(_expanded(counts) if isinstance(counts, str) else counts, np.int64)


def rle_to_mask(rle: Mapping[str, Any]) -> np.ndarray:
    """The (H, W) boolean mask that run lengths describe.

    Counts may be a list or array, or COCO's compressed text as str or bytes. Raises ValueError if
    they do not add up to the size.
    """
    (height, width), counts = rle["size"], _counts(rle)
    if counts.sum() != height * width or (counts < 0).any():
        raise ValueError(
            f"The run lengths must be non-negative and add up to {height} x {width} pixels, "
            f"got a sum of {counts.sum()}."
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.ascontiguousarray(np.repeat(inside, counts).reshape(width, height).T)


def rle_area(rle: Mapping[str, Any]) -> int:
    """Number of pixels inside the mask that run lengths describe."""
    return int(_counts(rle)[1::2].sum())


def rle_to_coco(rle: Mapping[str, Any]) -> RLE:
    """Run lengths, compressed or not, as COCO's `{"size": [H, W], "counts": text}` for JSON."""
    return {"size": list(rle["size"]), "counts": _compressed(_counts(rle).tolist())}


def point_grid(points_per_side: int) -> np.ndarray:
    """A regular grid of points, each in the middle of its cell, row by row.

    Returns (points_per_side ** 2, 2) float64, x and y in [0, 1]. Raises ValueError below 1 point
    and above `MAX_POINTS_PER_SIDE`.
    """
    if points_per_side < 1:
        raise ValueError(f"A grid needs at least 1 point a side, got {points_per_side}.")
    if points_per_side > MAX_POINTS_PER_SIDE:
        raise ValueError(
            f"A grid takes at most {MAX_POINTS_PER_SIDE} points a side, got {points_per_side}."
        )
    margin = 1 / (2 * points_per_side)
    x_or_y = np.linspace(margin, 1 - margin, points_per_side)
    y, x = np.meshgrid(x_or_y, x_or_y, indexing="ij")
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def point_grids(points_per_side: int, n_layers: int, downscale_factor: int) -> list[np.ndarray]:
    """A `point_grid` for the whole image and one for each layer of crops.

    Layer i has `points_per_side / downscale_factor**i` points a side. Raises ValueError if that
    leaves a layer without points, or there are too many points or layers.
    """
    check_crop_layers(n_layers)
    return [point_grid(int(points_per_side / downscale_factor**i)) for i in range(n_layers + 1)]


def check_crop_layers(n_layers: int) -> None:
    """Raises ValueError above `MAX_CROP_LAYERS`; layer i has 4**i crops."""
    if n_layers > MAX_CROP_LAYERS:
        raise ValueError(
            f"crop_n_layers must be at most {MAX_CROP_LAYERS}, got {n_layers}: layer i has 4**i "
            "crops, each of which is encoded."
        )


def _crop_starts(length: int, n_crops: int, overlap: int) -> tuple[list[int], int]:
    crop_length = math.ceil((overlap * (n_crops - 1) + length) / n_crops)
    return [(crop_length - overlap) * i for i in range(n_crops)], crop_length


def crop_boxes(
    size_hw: tuple[int, int], n_layers: int, overlap_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """The whole image, and layers of ever smaller overlapping crops that cover it.

    Layer i has 2**i crops along each side, column by column. Where the image is so small that a
    crop would be empty, that crop is left out.

    Args:
        size_hw: Height and width of the image.
        n_layers: Layers of crops besides the whole image.
        overlap_ratio: Overlap of the first layer's crops, as a share of the image's shorter side.

    Returns:
        The boxes, (C, 4) int64 with exclusive right and bottom, and the layer of each, (C,) int64.

    Raises:
        ValueError: There are more than `MAX_CROP_LAYERS`.
    """
    check_crop_layers(n_layers)
    height, width = size_hw
    boxes, layers = [(0, 0, width, height)], [0]
    for layer in range(1, n_layers + 1):
        n_crops = 2**layer
        overlap = int(overlap_ratio * min(height, width) * (2 / n_crops))
        lefts, crop_width = _crop_starts(width, n_crops, overlap)
        tops, crop_height = _crop_starts(height, n_crops, overlap)
        for left, top in product(lefts, tops):
            if left < width and top < height:
                right, bottom = min(left + crop_width, width), min(top + crop_height, height)
                boxes.append((left, top, right, bottom))
                layers.append(layer)
    return np.asarray(boxes, np.int64), np.asarray(layers, np.int64)


def cut_sides(
    boxes: np.ndarray,
    crop_boxes: np.ndarray,
    size_hw: tuple[int, int],
    tolerance: float = EDGE_TOLERANCE,
) -> np.ndarray:
    """Which sides of each box touch an edge of its crop that is not an edge of the image.

    Such a mask is probably cut off; another crop, or the whole image, sees all of it. Takes boxes
    (n, 4) and crops (n, 4) or (4,) in pixels of the image, the image's size, and the distance in
    pixels that still counts as touching. Returns (n, 4) bool: left, top, right, bottom.
    """
    boxes, crops = (np.asarray(given, np.float32).reshape(-1, 4) for given in (boxes, crop_boxes))
    image = np.asarray([0, 0, size_hw[1], size_hw[0]], np.float32)
    return (np.abs(boxes - crops) <= tolerance) & (np.abs(boxes - image) > tolerance)


def require_scipy() -> None:
    """Raises ImportError with what to install if `remove_small_regions` could not run."""
    if ndimage is None:
        raise ImportError("Removing small regions needs scipy: pip install scipy")


def remove_small_regions(
    mask: np.ndarray, area_threshold: float, mode: str
) -> tuple[np.ndarray, bool]:
    """The mask without its small holes or its small islands, and whether it changed.

    Pixels that touch at a corner belong together. If every island is too small, the largest stays
    (the first of them, row by row, if several are equally large).

    Args:
        mask: (H, W) bool.
        area_threshold: Regions of fewer pixels are removed.
        mode: "holes" or "islands".

    Raises:
        ImportError: If scipy is not installed.
        ValueError: If `mode` is another word.
    """
    if mode not in ("holes", "islands"):
        raise ValueError(f'mode must be "holes" or "islands", got {mode!r}.')
    require_scipy()
    mask = np.asarray(mask, dtype=bool)
    regions, n_regions = ndimage.label(~mask if mode == "holes" else mask, np.ones((3, 3)))
    areas = np.bincount(regions.ravel(), minlength=n_regions + 1)
    is_small = areas < area_threshold
    is_small[0] = False  # label 0 is everything else
    if not is_small.any():
        return mask, False
    if mode == "holes":
        return mask | is_small[regions], True
    if is_small[1:].all():
        is_small[1 + areas[1:].argmax()] = False
    return mask & ~is_small[regions], True


def deepest_point(region: np.ndarray) -> tuple[float, tuple[int, int]]:
    """The pixel of a region (H, W) farthest from its edge: its distance, and x and y.

    The image's edge is an edge of the region. An empty region has the distance 0.
    """
    if not region.any():
        return 0.0, (0, 0)
    rows, columns = mask_window(region)
    depth = ndimage.distance_transform_edt(np.pad(region[rows, columns], 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return float(depth[row, column]), (int(column) + columns.start, int(row) + rows.start)


def next_click(
    mask: np.ndarray,
    truth: np.ndarray,
    known: np.ndarray | None = None,
    clicked: Sequence[tuple[int, int]] = (),
) -> tuple[tuple[int, int], int] | None:
    """Where a mask is most wrong: x and y, and 1 for what is missing or 0 for what is too much.

    It is the centre of the largest error, as interactive segmentation is usually measured: the
    maximum of the distance to the edge over the missing and over the exceeding pixels.

    Args:
        mask: (H, W) bool, as predicted.
        truth: (H, W) bool.
        known: (H, W) bool, the pixels that count; all by default.
        clicked: Points x and y of earlier clicks, where none is made again.

    Returns:
        None if there is no error, or none that was not clicked at.
    """
    wrong = mask ^ truth
    if known is not None:
        wrong &= known
    for x, y in clicked:
        wrong[y, x] = False
    missing, missing_xy = deepest_point(wrong & truth)
    exceeding, exceeding_xy = deepest_point(wrong & mask)
    if missing == exceeding == 0:
        return None
    return (missing_xy, 1) if missing >= exceeding else (exceeding_xy, 0)


def mask_window(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the smallest box around a mask that is not empty."""
    left, top, right, bottom = masks_to_boxes(mask).tolist()
    return slice(top, bottom + 1), slice(left, right + 1)
