"""Which prompts cannot be meant: one rule for predictor, processor, command and endpoint.

Coordinates are pixels of the image as it was given, x before y. Points on the border, and boxes
that end at the image's width or a little beyond, are common in data sets and are taken as they
are. Refused, with what was probably meant, is what can only be a mistake:

- a point farther outside than `POINT_MARGIN` of the image's longer side;
- a box that lies beside the image, reaches beyond it by more than `BOX_MARGIN` of the longer side,
  or ends before it begins;
- points or boxes that all lie within the image's first pixel, where only coordinates from 0 to 1
  put them: for points, fractions; for boxes, anything with an area;
- mask prompts that are no logits: a picture's 0 and 1 or 0 and 255, however resized, probabilities,
  or values beyond `LARGEST_LOGIT`.

Needs numpy only.
"""

from typing import Any

import numpy as np

POINT_MARGIN = 0.05
"""How far outside a point may lie, over the image's longer side"""
BOX_MARGIN = 0.25
"""How far outside a box may end: tracked and amodal boxes go on where the image stops."""
LEAST_MARGIN = 4.0
"""Pixels that either margin has in the smallest image."""
LARGEST_LOGIT = 1e4
"""The models' own logits stay below 100 by and large."""

_PICTURE_MAXIMA = (1.0, 255.0, 65535.0)
"""The lightest value of a mask in a picture: as a boolean, with 8 bits, with 16."""

SizeHW = tuple[int, int]


def check_points(
    name: str, points_xy: np.ndarray, size_hw: SizeHW, counts: np.ndarray | None = None
) -> None:
    """Refuses points that cannot be meant.

    Args:
        name: What the user calls them.
        points_xy: (..., 2) finite, x before y in pixels of the image.
        size_hw: Height and width of the image.
        counts: (...) bool, False for points whose position does not matter: padding, or no points.

    Raises:
        ValueError: A point lies far outside the image, or all seem to be normalised.
    """
    points = points_xy.reshape(-1, 2)
    if counts is not None:
        points = points[counts.reshape(-1)]
    if not len(points):
        return
    margin = max(LEAST_MARGIN, POINT_MARGIN * max(size_hw))
    width, height = size_hw[::-1]
    is_far = (points < -margin) | (points > (width + margin, height + margin))
    if is_far.any():
        [x, y] = points[is_far.any(axis=1)][0]
        is_swapped = -margin <= x <= height + margin and -margin <= y <= width + margin
        hint = "x comes before y. " if is_swapped else ""
        raise _outside(name, f"({x:g}, {y:g}) lies", size_hw, hint)
    if _is_in_first_pixel(points, size_hw) and (points % 1).any():
        raise _normalised(name, points[0], size_hw)


def check_boxes(name: str, boxes_xyxy: np.ndarray, size_hw: SizeHW) -> None:
    """Refuses boxes that cannot be meant.

    Args:
        name: What the user calls them.
        boxes_xyxy: (..., 4) finite: left, top, right, bottom in pixels of the image.
        size_hw: Height and width of the image.

    Raises:
        ValueError: A box ends before it begins, lies outside the image or reaches far beyond it,
            or all seem to be normalised.
    """
    boxes = boxes_xyxy.reshape(-1, 4)
    if not len(boxes):
        return
    check_corners(name, boxes)
    margin, limits = BOX_MARGIN * max(size_hw), np.array(size_hw[::-1])
    margin = max(LEAST_MARGIN, margin)
    is_far = (boxes[:, :2] < -margin) | (boxes[:, 2:] > limits + margin)
    is_beside = (boxes[:, 2:] < 0) | (boxes[:, :2] > limits)
    is_wrong = (is_far | is_beside).any(axis=1)
    if is_wrong.any():
        text = ", ".join(f"{edge:g}" for edge in boxes[is_wrong][0])
        verb = "lies" if is_beside[is_wrong][0].any() else "reaches far"
        raise _outside(name, f"({text}) {verb}", size_hw)
    if _is_in_first_pixel(boxes, size_hw) and (boxes[:, 2:] > boxes[:, :2]).all(axis=1).any():
        raise _normalised(name, boxes[0], size_hw)


def check_corners(name: str, boxes_xyxy: np.ndarray) -> None:
    """Refuses boxes (..., 4) that end before they begin.

    Raises:
        ValueError: Such a box.
    """
    is_reversed = (boxes_xyxy[..., 2:] < boxes_xyxy[..., :2]).any(axis=-1)
    if is_reversed.any():
        box = boxes_xyxy[is_reversed][0].tolist()
        raise ValueError(
            f"{name}: expected left, top, right, bottom in this order, with right >= left and "
            f"bottom >= top, got {box}. A box given by its width and height ends at left + width, "
            "top + height."
        )


def check_mask_logits(name: str, masks: np.ndarray) -> None:
    """Refuses mask prompts that are pictures of masks, or no logits a model makes.

    Args:
        name: What the user calls them.
        masks: (..., H, W) finite numbers.

    Raises:
        ValueError: A mask's values are those of a picture, or probabilities, or far too large.
    """
    if not masks.size:
        return
    lowest = masks.min(axis=(-2, -1)).astype(np.float64)
    highest = masks.max(axis=(-2, -1)).astype(np.float64)
    is_picture = (0 <= lowest) & (lowest < highest) & np.isin(highest, _PICTURE_MAXIMA)
    is_probability = (lowest >= 0) & (highest <= 1) & (highest - lowest > 0.5)
    is_wrong = is_picture | is_probability
    if is_wrong.any():
        low, high = float(lowest[is_wrong].flat[0]), float(highest[is_wrong].flat[0])
        raise ValueError(
            f"{name} must hold logits, negative outside the object, got values from {low:g} to "
            f"{high:g}: this looks like a picture of a mask, or like probabilities. "
            f"np.where(mask > {high / 2:g}, 10.0, -10.0) makes confident logits of it."
        )
    largest = float(max(-lowest.min(), highest.max()))
    if largest > LARGEST_LOGIT:
        raise ValueError(
            f"{name} must hold logits such as the model returns, usually from -50 to 50, got "
            f"values up to {largest:g}. Clip them."
        )


def _is_in_first_pixel(coordinates: np.ndarray, size_hw: SizeHW) -> bool:
    """Whether all lie in [0, 1], although the image is larger."""
    return max(size_hw) > 2 and bool(((coordinates >= 0) & (coordinates <= 1)).all())


def _outside(name: str, what: str, size_hw: SizeHW, hint: str = "") -> ValueError:
    height, width = size_hw
    return ValueError(
        f"{name}: {what} outside the image of {width} x {height} pixels (width x height). {hint}"
        "Coordinates are pixels of the image as it was given, before any resizing."
    )


def _normalised(name: str, example: Any, size_hw: SizeHW) -> ValueError:
    height, width = size_hw
    text = ", ".join(f"{value:g}" for value in example)
    return ValueError(
        f"{name}: ({text}) and all others lie in the first pixel of the image of {width} x "
        f"{height}: these look like normalised coordinates, from 0 to 1. Multiply x by {width} and "
        f"y by {height}."
    )
