"""What files of annotations need to know of a record, whoever made it.

A record is a dictionary as `SAMAutomaticMaskGenerator.generate` returns it, in any `output_mode`,
or as the command writes it to JSON. Only "segmentation" is needed; "label" names the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..model.mask_ops import RLE, masks_to_rles, rle_to_mask, rle_with_list

Record = Mapping[str, Any]

DEFAULT_LABEL = "object"
"""The label of a record that has none."""
SCORES = ("predicted_iou", "stability_score")
"""Entries of a record that formats with room for it tell, if it has them."""


class Categories(dict[str, int]):
    """Numbers of labels; a label that has none gets the next one when it is asked for.

    Args:
        known: Labels, which are numbered in their order, or labels with their numbers.
        first: The lowest number that is given.
    """

    def __init__(self, known: Iterable[str] | Mapping[str, int] = (), first: int = 0) -> None:
        """Numbers the labels that are known."""
        super().__init__(known if isinstance(known, Mapping) else {})
        self.first = first
        for label in known:
            self[label]

    def __missing__(self, label: str) -> int:
        """The next number, for a new label."""
        self[label] = max(self.values(), default=self.first - 1) + 1
        return self[label]


class Cropped(NamedTuple):
    """The part of a mask that is not empty around."""

    mask: np.ndarray
    """(h, w) bool; (0, 0) of an empty mask."""
    left: int
    top: int

    @property
    def origin(self) -> np.ndarray:
        """(2,) float64, left and top."""
        return np.array([self.left, self.top], np.float64)

    @property
    def box_xywh(self) -> list[int]:
        """Left, top, width and height, which count columns and rows."""
        return [self.left, self.top, self.mask.shape[1], self.mask.shape[0]]


def label_of(record: Record) -> str:
    """The record's label."""
    return str(record.get("label") or DEFAULT_LABEL)


def run_lengths(record: Record, size_hw: tuple[int, int]) -> RLE:
    """The record's mask as uncompressed run lengths.

    Raises:
        ValueError: It is of another size than the image, or no mask.
    """
    segmentation = record["segmentation"]
    if isinstance(segmentation, Mapping):
        runs = rle_with_list(segmentation)
    else:
        mask = np.asarray(segmentation)
        if mask.ndim != 2 or mask.dtype != bool:
            raise ValueError(
                'A record\'s "segmentation" must be a boolean mask (H, W) or run lengths, got '
                f"{mask.dtype} of shape {mask.shape}."
            )
        [runs] = masks_to_rles(mask[None])
    if tuple(runs["size"]) != tuple(size_hw):
        raise ValueError(
            f"A record's mask has {runs['size'][1]} x {runs['size'][0]} pixels, the image "
            f"{size_hw[1]} x {size_hw[0]}."
        )
    return runs


def cropped(runs: RLE) -> Cropped:
    """A mask of run lengths, cut to its box: the rest is not made."""
    height, counts = runs["size"][0], np.asarray(runs["counts"], np.int64)
    borders = np.cumsum(counts)
    if not counts[1::2].any():
        return Cropped(np.zeros((0, 0), bool), 0, 0)
    first, last = borders[0], borders[1::2][counts[1::2] > 0][-1]
    left, right = first // height, -(-last // height)
    within = np.diff(np.clip(borders, left * height, right * height), prepend=left * height)
    columns = rle_to_mask({"size": (height, int(right - left)), "counts": within})
    rows = np.flatnonzero(columns.any(axis=1))
    top, bottom = rows[0], rows[-1] + 1
    return Cropped(columns[top:bottom], int(left), int(top))
