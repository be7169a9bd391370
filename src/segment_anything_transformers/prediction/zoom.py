"""The part of an image that a predictor looks at more closely."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from ..model.mask_ops import masks_to_boxes
from ..model.prompt_rules import check_boxes

MARGIN = 0.5
"""What is shown on each side of an object, over its longer side."""
SMALLEST_SIDE = 32
"""Pixels of the image: a part with fewer shows an object without anything around it."""
OUTSIDE_LOGIT = -32.0
"""Of pixels beyond the part, which a mask does not reach."""


class Region(NamedTuple):
    """A part of an image, in its pixels."""

    left: int
    top: int
    right: int
    """Exclusive, like `bottom`."""
    bottom: int

    @classmethod
    def whole(cls, size_hw: tuple[int, int]) -> Self:
        """All of an image."""
        height, width = size_hw
        return cls(0, 0, width, height)

    @classmethod
    def around(cls, box: np.ndarray, size_hw: tuple[int, int], margin: float) -> Self:
        """A square around a box (left, top, right, bottom), moved into the image.

        It is as long as the image at most; where the image is shorter, it is no square.
        """
        left, top, right, bottom = (float(edge) for edge in box)
        longer = max(right - left, bottom - top) + 1.0
        side = int(np.ceil(max((1.0 + 2.0 * margin) * longer, SMALLEST_SIDE)))
        width, height = min(side, size_hw[1]), min(side, size_hw[0])
        left = np.clip(round((left + right + 1.0 - width) / 2.0), 0, size_hw[1] - width)
        top = np.clip(round((top + bottom + 1.0 - height) / 2.0), 0, size_hw[0] - height)
        return cls(int(left), int(top), int(left) + width, int(top) + height)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left

    @property
    def rows_and_columns(self) -> tuple[slice, slice]:
        """What cuts it out of an image's (H0, W0, ...)."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def of(self, array: np.ndarray) -> np.ndarray:
        """The part of an image's (..., H0, W0), as a view."""
        return array[(..., *self.rows_and_columns)]


def box_around(points: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """The box (4,) of some points (M, 2) of an object, and of a mask (H0, W0) of it."""
    if mask is not None and mask.any():
        points = np.concatenate([points, masks_to_boxes(mask).reshape(2, 2)])
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def checked_target(target: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """The box (4,) that `zoom` is to show, of a box or of a mask."""
    if target.ndim == 2:
        if target.dtype != bool:
            raise TypeError(f"A mask to zoom to must be boolean, got dtype {target.dtype}.")
        if target.shape != size_hw or not target.any():
            raise ValueError(
                f"A mask to zoom to must have the image's size {size_hw} and show something, got "
                f"{target.shape} with {np.count_nonzero(target)} pixels."
            )
        return masks_to_boxes(target)
    height, width = size_hw
    is_box = target.shape == (4,) and bool(np.isfinite(target).all())
    if is_box:
        left, top, right, bottom = target
        is_box = left <= right and top <= bottom
        is_box = is_box and left < width and top < height and right >= 0 and bottom >= 0
    if not is_box:
        raise ValueError(
            "Zoom to a box (left, top, right, bottom) in the image of height and width "
            f"{size_hw}, or to a mask of that size; got {target.tolist()}."
        )
    check_boxes("The box to zoom to", target, size_hw)
    return target.clip(0, [width - 1, height - 1, width - 1, height - 1])
