"""Masks that the edges of crops cut, put together where they continue each other.

All is done on run lengths, so that no mask is ever unfolded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from ..model.mask_ops import EDGE_TOLERANCE, RLE, cut_sides, rle_area
from .found_masks import FoundMasks

_LEAST_AGREEMENT = 0.7
"""IoU, in the overlap of their crops, from which two masks show the same object; and the share of a
piece at a cut edge that other pieces have to show."""


def by_cut(masks: FoundMasks, size_hw: tuple[int, int]) -> tuple[FoundMasks, FoundMasks]:
    """The masks that no edge of their crop cuts, and the others; `size_hw` is the image's."""
    is_cut = np.asarray(cut_sides(masks.boxes, masks.crop_boxes, size_hw).any(axis=1))
    return masks.take(~is_cut), masks.take(is_cut)


def merge_cut_masks(masks: FoundMasks, size_hw: tuple[int, int]) -> FoundMasks:
    """Whole masks, and objects that edges of crops cut into pieces, each put together again.

    Masks of different crops are pieces of one object if each goes on where the other is cut, and
    if they agree in the overlap of the crops. Of the best agreement first, pieces are joined; no
    two come from one crop. What is still cut then is left out.

    Args:
        masks: Masks of the crops of one layer.
        size_hw: Size (H, W) of the image.

    Returns:
        The masks that were whole, then those that were merged. A merged mask is the union of its
        pieces, its box that of the union. Its scores are the lowest of the pieces' scores, its
        click is that of the largest piece, and its crop is the box around the pieces' crops.
    """
    whole, masks = by_cut(masks, size_hw)
    cut = cut_sides(masks.boxes, masks.crop_boxes, size_hw)
    pieces = _pieces_of_objects(masks, cut)
    merged = [_joined(masks.take(some)) for some in pieces if _is_whole(masks, cut, some)]
    return FoundMasks.joined([whole, *merged])


def _pieces_of_objects(masks: FoundMasks, cut: np.ndarray) -> list[np.ndarray]:
    """Indices of the masks that are pieces of one object, two or more for each."""
    members = {index: {index} for index in range(len(masks.rles))}
    for first, second in _continuations(masks, cut):
        together = members[first] | members[second]
        crops = {tuple(masks.crop_boxes[index]) for index in together}
        if len(crops) == len(together):
            members.update(dict.fromkeys(together, together))
    objects = {min(together): together for together in members.values() if len(together) > 1}
    return [np.array(sorted(together)) for together in objects.values()]


def _continuations(masks: FoundMasks, cut: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of masks that continue each other, those that agree best first."""

    @cache
    def area_in_crop(index: int, crop: tuple[int, ...]) -> int:
        return overlap(masks.rles[index], box_rle(crop, masks.rles[index]["size"]))

    crops = [tuple(crop) for crop in masks.crop_boxes.tolist()]
    pairs = []
    for first in range(len(crops)):
        for second in _possible_continuations(masks, cut, first):
            shared = overlap(masks.rles[first], masks.rles[second])
            areas = area_in_crop(first, crops[second]) + area_in_crop(second, crops[first])
            if shared >= _LEAST_AGREEMENT * (areas - shared) > 0:
                pairs.append((-shared / (areas - shared), first, second))
    return [(first, second) for _, first, second in sorted(pairs)]


def _possible_continuations(masks: FoundMasks, cut: np.ndarray, first: int) -> list[int]:
    """Later masks whose boxes meet that of the first, each crop reaching over the other's cut."""
    box, boxes = masks.boxes[first], masks.boxes
    meets = ((boxes[:, :2] <= box[2:]) & (box[:2] <= boxes[:, 2:])).all(axis=1)
    further = (masks.crop_boxes - masks.crop_boxes[first]) * (-1, -1, 1, 1)
    goes_on = (cut[first] & (further > 0)).any(axis=1) & (cut & (further < 0)).any(axis=1)
    return (first + 1 + np.flatnonzero((meets & goes_on)[first + 1 :])).tolist()


def _is_whole(masks: FoundMasks, cut: np.ndarray, pieces: np.ndarray) -> bool:
    """Whether what each piece shows at a cut edge is shown by pieces that see beyond it."""
    crops, rles = masks.crop_boxes[pieces], masks.rles[pieces]
    for index, side in zip(*np.nonzero(cut[pieces]), strict=True):
        beyond = (crops[:, side] - crops[index, side]) * (-1, -1, 1, 1)[side] > 0
        if not beyond.any():
            return False
        strip = box_rle(_edge_strip(crops[index], side), rles[index]["size"])
        others = union(rles[beyond])
        at_edge = overlap(rles[index], strip)
        either = overlap(union([rles[index], others]), strip)
        if at_edge + overlap(others, strip) - either < _LEAST_AGREEMENT * at_edge:
            return False
    return True


def _edge_strip(crop: np.ndarray, side: int) -> np.ndarray:
    """The outermost pixels of a crop at one of its sides: as many as count as touching."""
    strip, width = crop.copy(), 1 + int(EDGE_TOLERANCE)
    strip[(side + 2) % 4] = crop[side] + (width if side < 2 else -width)
    return np.concatenate([np.maximum(strip[:2], crop[:2]), np.minimum(strip[2:], crop[2:])])


def _joined(pieces: FoundMasks) -> FoundMasks:
    """One mask of all the pieces."""
    start, end = pieces.boxes[:, :2].min(axis=0), pieces.boxes[:, 2:].max(axis=0)
    crop_start, crop_end = (
        pieces.crop_boxes[:, :2].min(axis=0),
        pieces.crop_boxes[:, 2:].max(axis=0),
    )
    largest = int(np.argmax([rle_area(rle) for rle in pieces.rles]))
    rles = np.empty(1, object)
    rles[0] = union(pieces.rles)
    return FoundMasks(
        rles,
        np.concatenate([start, end])[None],
        pieces.iou_scores.min(keepdims=True),
        pieces.stability_scores.min(keepdims=True),
        pieces.points[largest][None],
        np.concatenate([crop_start, crop_end])[None],
    )


def box_rle(box: Sequence[int] | np.ndarray, size_hw: Sequence[int]) -> RLE:
    """Run lengths of all pixels of a box with exclusive right and bottom, in an image (H, W)."""
    left, top, right, bottom = (int(edge) for edge in box)
    starts = np.arange(left, right) * size_hw[0]
    return _from_runs(starts + top, starts + bottom, size_hw)


def overlap(rle: RLE, other: RLE) -> int:
    """Number of pixels that lie in both masks of uncompressed run lengths."""
    runs = np.concatenate([[0], other["counts"]])
    ends = runs.cumsum()
    inside = np.where(np.arange(len(runs)) % 2 == 0, runs, 0).cumsum()

    def pixels_before(place: np.ndarray) -> np.ndarray:
        run = np.searchsorted(ends, place, "right") - 1  # the one that ended last
        return inside[run] + np.where(run % 2 == 1, place - ends[run], 0)

    starts, stops = _runs(rle)
    return int((pixels_before(stops) - pixels_before(starts)).sum())


def union(rles: Sequence[RLE] | np.ndarray) -> RLE:
    """Run lengths of the pixels that lie in any of the masks of uncompressed run lengths."""
    runs = [_runs(rle) for rle in rles]
    starts, stops = (np.concatenate(places) for places in zip(*runs, strict=True))
    places = np.concatenate([starts, stops])
    steps = np.repeat([1, -1], len(starts))
    order = np.lexsort((-steps, places))  # a run that begins where another ends continues it
    places, depth = places[order], steps[order].cumsum()
    closes = depth == 0
    opens = np.concatenate([[True], closes[:-1]]) if len(closes) else closes
    return _from_runs(places[opens], places[closes], rles[0]["size"])


def _runs(rle: RLE) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs inside a mask start and stop, counted down the columns."""
    places = np.cumsum(rle["counts"])
    stops = places[1::2]
    return places[::2][: len(stops)], stops


def _from_runs(starts: np.ndarray, stops: np.ndarray, size_hw: Sequence[int]) -> RLE:
    """The reverse of `_runs`; runs that touch become one, and empty ones none."""
    places = np.stack([starts, stops], axis=1)[stops > starts].ravel()
    touch = np.flatnonzero(places[1:-1:2] == places[2::2])
    places = np.delete(places, np.concatenate([2 * touch + 1, 2 * touch + 2]))
    counts = np.diff(places, prepend=0, append=size_hw[0] * size_hw[1])
    return {"size": list(size_hw), "counts": counts if counts[-1] else counts[:-1]}
