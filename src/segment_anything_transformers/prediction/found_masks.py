"""Masks that the generator has found, as columns of equal length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

import numpy as np

from ..model.mask_ops import masks_to_boxes, masks_to_rles, nms, remove_small_regions, rle_to_mask


class FoundMasks(NamedTuple):
    """n masks in pixels of the whole image."""

    rles: np.ndarray
    """(n,) of dictionaries, uncompressed run lengths."""
    boxes: np.ndarray
    """(n, 4) int64, inclusive."""
    iou_scores: np.ndarray
    """(n,) float32, predicted."""
    stability_scores: np.ndarray
    """(n,) float32."""
    points: np.ndarray
    """(n, 2) float64, the click that each comes from."""
    crop_boxes: np.ndarray
    """(n, 4) int64, the crop that each was found in."""

    @classmethod
    def none(cls) -> Self:
        """Columns of length 0."""
        empty, boxes = np.zeros(0, np.float32), np.zeros((0, 4), np.int64)
        return cls(np.zeros(0, object), boxes, empty, empty, np.zeros((0, 2)), boxes)

    @classmethod
    def joined(cls, parts: Iterable[FoundMasks]) -> Self:
        """All parts, one after the other."""
        return cls(*map(np.concatenate, zip(cls.none(), *parts, strict=True)))

    def take(self, indices: np.ndarray) -> FoundMasks:
        """Some of the masks, by their indices in that order, or by what is True of them."""
        return FoundMasks(*(column[indices] for column in self))

    def cover(self, points: np.ndarray) -> np.ndarray:
        """Which of the points (n, 2) in pixels of the image lie in any of the masks, (n,) bool."""
        covered = np.zeros(len(points), bool)
        columns, rows = points.astype(np.int64).T
        for rle in self.rles:
            height = rle["size"][0]
            run = np.searchsorted(np.cumsum(rle["counts"]), columns * height + rows, "right")
            covered |= run % 2 == 1
        return covered

    def without_small_regions(self, least_area: int, nms_thresh: float) -> FoundMasks:
        """The masks without small holes and islands, and without duplicates that this made.

        Masks that had none come first and win over those that were changed.

        Args:
            least_area: Holes and islands of fewer pixels go.
            nms_thresh: Of two masks whose boxes have a larger IoU, one goes.
        """
        rles, boxes, unchanged = self.rles.copy(), self.boxes.copy(), np.ones(len(self.rles))
        for index, rle in enumerate(self.rles):
            mask, filled = remove_small_regions(rle_to_mask(rle), least_area, "holes")
            mask, cut = remove_small_regions(mask, least_area, "islands")
            if filled or cut:
                unchanged[index] = 0
                boxes[index] = masks_to_boxes(mask)
                rles[index] = masks_to_rles(mask[None])[0]
        cleaned = self._replace(rles=rles, boxes=boxes)
        return cleaned.take(nms(boxes, unchanged, nms_thresh))
