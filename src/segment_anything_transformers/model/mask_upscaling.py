"""Low-resolution mask logits at the size of the image, computed only where a mask can be.

Bilinear interpolation never exceeds the values it lies between. So where all low-resolution logits
around stay below a cut-off, nothing above it appears at full size, and most masks are small.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from .mask_ops import RLE, bilinear_matrix, columns_to_rle, cut_sides

try:
    from scipy import sparse
except ImportError:
    sparse = None


def upscaling_matrix(
    mask_length: int, input_length: int, image_length: int, original_length: int
) -> np.ndarray:
    """One axis of `upscale_masks`: (original_length, mask_length) float32."""
    to_input = bilinear_matrix(mask_length, input_length)
    return bilinear_matrix(image_length, original_length) @ to_input[:image_length]


class _Axis(NamedTuple):
    """One axis of the way from low resolution to the original image."""

    matrix: Any  # (original, mask), sparse where scipy is installed
    first: np.ndarray  # (original,) the first low-resolution pixel that goes into each pixel
    last: np.ndarray  # (original,) and the last

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, *lengths: int) -> Self:
        """From the lengths that `upscaling_matrix` takes."""
        matrix = upscaling_matrix(*lengths)
        first = (matrix != 0).argmax(axis=1)
        last = matrix.shape[1] - 1 - (matrix != 0)[:, ::-1].argmax(axis=1)
        # Each row has at most four numbers, so a sparse product takes a quarter of the time.
        return cls(matrix if sparse is None else sparse.csr_array(matrix), first, last)

    def span(self, is_above: np.ndarray) -> tuple[slice, slice]:
        """The pixels that any of the marked low-resolution pixels goes into.

        Returns them, and the low-resolution pixels that go into them.
        """
        marked = np.flatnonzero(is_above)
        if not len(marked):
            return slice(0, 0), slice(0, 0)
        start = int(np.searchsorted(self.last, marked[0], "left"))
        stop = int(np.searchsorted(self.first, marked[-1], "right"))
        if start >= stop:  # an image smaller than its mask leaves pixels of the mask out
            return slice(0, 0), slice(0, 0)
        return slice(start, stop), slice(int(self.first[start]), int(self.last[stop - 1]) + 1)

    def part(self, pixels: slice, low_resolution: slice) -> Any:
        """The part of the matrix that makes these pixels out of those."""
        if sparse is None:
            return self.matrix[pixels, low_resolution]
        starts = self.matrix.indptr[pixels.start : pixels.stop + 1]
        numbers = slice(starts[0], starts[-1])
        shape = (pixels.stop - pixels.start, low_resolution.stop - low_resolution.start)
        columns = self.matrix.indices[numbers] - low_resolution.start
        return sparse.csr_array((self.matrix.data[numbers], columns, starts - starts[0]), shape)


class FullMask(NamedTuple):
    """A mask at full size."""

    rle: RLE
    box: tuple[int, int, int, int]  # left, top, right, bottom, inclusive; zeros without a pixel


class LogitsInBox(NamedTuple):
    """Full-size logits of one mask, all of them that exceed a cut-off."""

    columns: np.ndarray  # (w, h) float32, by column
    left: int
    top: int

    def stability(self, mask_threshold: float, offset: float) -> np.float32:
        """As `mask_ops.stability_scores`, if the cut-off was at most threshold - offset."""
        strict = np.count_nonzero(self.columns > mask_threshold + offset)
        lax = np.count_nonzero(self.columns > mask_threshold - offset)
        return np.float32(int(strict)) / np.float32(max(int(lax), 1))

    def mask(
        self, mask_threshold: float, size_hw: tuple[int, int], left_top: tuple[int, int] = (0, 0)
    ) -> FullMask:
        """The mask in an image of that size, in which the logits' own image begins at `left_top`.

        The box is in pixels of the logits' own image.
        """
        inside = self.columns > mask_threshold
        place = (left_top[0] + self.left, left_top[1] + self.top)
        columns, rows = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        box = (0, 0, 0, 0)
        if len(columns):
            box = (
                self.left + int(columns[0]),
                self.top + int(rows[0]),
                self.left + int(columns[-1]),
                self.top + int(rows[-1]),
            )
        return FullMask(columns_to_rle(inside, place, size_hw), box)


class MaskUpscaler:
    """Brings the low-resolution logits of one image to its own size.

    They are resized to the model's input, its padding is cut off, and what is left is resized to
    the original image. All of this is linear, so that it is one matrix an axis, and the large
    padded logits never exist.

    Args:
        mask_hw: Size (H', W') of the logits.
        input_hw: Size (H, W) of the model's input.
        image_hw: The part of the input that the image fills.
        original_hw: Size (H0, W0) of the image.
    """

    def __init__(
        self,
        mask_hw: tuple[int, int],
        input_hw: tuple[int, int],
        image_hw: tuple[int, int],
        original_hw: tuple[int, int],
    ) -> None:
        """Makes the two matrices."""
        lengths = zip(mask_hw, input_hw, image_hw, original_hw, strict=True)
        self._axis_y, self._axis_x = (_Axis.of(*axis) for axis in lengths)
        self.original_hw = original_hw

    def in_box(self, mask_logits: np.ndarray, cut_off: float) -> LogitsInBox:
        """Full-size logits in a box outside of which none exceeds the cut-off.

        Takes the logits of one mask, (H', W').
        """
        rows, low_rows, columns, low_columns = self._box(mask_logits, cut_off)
        by_row = self._axis_y.part(rows, low_rows) @ mask_logits[low_rows, low_columns]
        by_column = self._axis_x.part(columns, low_columns) @ np.ascontiguousarray(by_row.T)
        return LogitsInBox(by_column, columns.start, rows.start)

    def mask(self, mask_logits: np.ndarray, mask_threshold: float, out: np.ndarray) -> None:
        """The mask of the logits (H', W') at full size, set in `out`, (H0, W0) bool, all False."""
        rows, low_rows, columns, low_columns = self._box(mask_logits, mask_threshold)
        part = np.ascontiguousarray(mask_logits[low_rows, low_columns].T)
        by_column = self._axis_x.part(columns, low_columns) @ part
        logits = self._axis_y.part(rows, low_rows) @ np.ascontiguousarray(by_column.T)
        np.greater(logits, mask_threshold, out=out[rows, columns])

    def _box(self, mask_logits: np.ndarray, cut_off: float) -> tuple[slice, slice, slice, slice]:
        """Rows of the box and of the logits that go into them, then columns likewise."""
        is_above = mask_logits > cut_off
        rows = self._axis_y.span(np.asarray(is_above.any(axis=1)))
        return *rows, *self._axis_x.span(np.asarray(is_above.any(axis=0)))

    def whole(self, mask_logits: np.ndarray) -> np.ndarray:
        """Full-size logits (n, H0, W0) float32 of all of (n, H', W').

        The result is a view whose memory runs down the columns, in the order of run lengths.
        """
        count, height, width = mask_logits.shape
        height_0, width_0 = self.original_hw
        by_row = np.asarray(mask_logits, np.float32).swapaxes(0, 1).reshape(height, count * width)
        rows = (self._axis_y.matrix @ by_row).reshape(height_0, count, width)  # (H0, n, W')
        by_column = rows.transpose(2, 1, 0).reshape(width, count * height_0)
        columns = (self._axis_x.matrix @ by_column).reshape(width_0, count, height_0)
        return columns.transpose(1, 2, 0)


class FinishedMasks(NamedTuple):
    """The good ones of many masks at full size, in the frame of the whole image."""

    indices: np.ndarray  # (n,) which of the given masks
    rles: list[RLE]
    boxes: np.ndarray  # (n, 4) int64, inclusive
    stability_scores: np.ndarray  # (n,) float32


def finish_masks(
    mask_logits: np.ndarray,
    upscaler: MaskUpscaler,
    mask_threshold: float,
    stability_offset: float,
    is_stable: Callable[[np.float32], Any],
    crop_box: np.ndarray,
    size_hw: tuple[int, int],
    keep_cut: bool = False,
) -> FinishedMasks:
    """Masks of one crop that are stable and that no edge of the crop cuts.

    Full-size logits exist of one mask in each thread, and only of its box.

    Args:
        mask_logits: (n, H', W') float32.
        upscaler: Brings them to the size of the crop.
        mask_threshold: Logits above it belong to the mask.
        stability_offset: How far the threshold moves to measure stability.
        is_stable: Says of a stability whether it suffices.
        crop_box: Left, top, right, bottom of the crop in the image.
        size_hw: Size of the image.
        keep_cut: Whether to keep those that an edge cuts too.
    """
    left_top = int(crop_box[0]), int(crop_box[1])

    def finish(logits: np.ndarray) -> tuple[FullMask, np.float32] | None:
        in_box = upscaler.in_box(logits, mask_threshold - stability_offset)
        stability = in_box.stability(mask_threshold, stability_offset)
        return (
            (in_box.mask(mask_threshold, size_hw, left_top), stability)
            if is_stable(stability)
            else None
        )

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        finished = [*threads.map(finish, mask_logits)]
    stable = {index: mask for index, mask in enumerate(finished) if mask is not None}
    boxes = np.array([mask.box for mask, _ in stable.values()], np.int64).reshape(-1, 4)
    boxes += np.tile(left_top, 2)
    is_cut = cut_sides(boxes, crop_box, size_hw).any(axis=1)
    kept = np.flatnonzero(keep_cut | ~is_cut)
    indices = np.array([*stable], np.int64)[kept]
    return FinishedMasks(
        indices,
        [stable[index][0].rle for index in indices],
        boxes[kept],
        np.array([stable[index][1] for index in indices], np.float32),
    )


def upscale_masks(
    mask_logits: np.ndarray,
    input_hw: tuple[int, int],
    image_hw: tuple[int, int],
    original_hw: tuple[int, int],
) -> np.ndarray:
    """As `MaskUpscaler.whole`, for (n, H', W') logits of one image."""
    return MaskUpscaler(mask_logits.shape[1:], input_hw, image_hw, original_hw).whole(mask_logits)
