"""How well masks fit the truth, and where a person would click next; numpy and scipy."""

import numpy as np
from scipy import ndimage, stats

from ..model.mask_ops import mask_window

RECALL_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoUs that a mask has to reach to count as found; COCO's average recall is the mean over them."""

BOUNDARY_SHARE = 0.02
"""Width of the boundary over the image's diagonal, as arXiv:2103.16562 proposes."""


def masks_iou(masks: np.ndarray, truth: np.ndarray, known: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of masks (..., H, W) with a true mask (H, W): (...) float64.

    Two empty masks agree: 1.

    Args:
        masks: (..., H, W) bool.
        truth: (..., H, W) bool, broadcast.
        known: (H, W) bool, the pixels that count; all by default.
    """
    if known is not None:
        masks, truth = masks & known, truth & known
    intersection = np.count_nonzero(masks & truth, axis=(-2, -1))
    union = np.count_nonzero(masks | truth, axis=(-2, -1))
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def boundary(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) that are near its edge; the image's edge counts as one.

    Near is a distance of 2% of the image's diagonal, in steps to any of the eight neighbours.

    Source: Cheng et al., "Boundary IoU", arXiv:2103.16562.
    """
    inside = np.zeros_like(mask)
    if not mask.any():
        return inside
    width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*mask.shape))))
    rows, columns = mask_window(mask)
    distance = ndimage.distance_transform_cdt(np.pad(mask[rows, columns], 1), "chessboard")
    inside[rows, columns] = distance[1:-1, 1:-1] > width
    return mask & ~inside


def boundary_iou(mask: np.ndarray, truth: np.ndarray, known: np.ndarray | None = None) -> float:
    """IoU of the boundaries of two masks (H, W)."""
    return float(masks_iou(boundary(mask), boundary(truth), known))


def matched_share(ious: np.ndarray) -> np.ndarray:
    """At how many of COCO's ten IoU thresholds each object is found, as a share: (P,) float64.

    Each proposal, the best first, finds the object that it overlaps most among those that none
    has found yet.

    Args:
        ious: (n, P) of n proposals, by falling score, with P objects.
    """
    found = np.zeros((len(RECALL_THRESHOLDS), ious.shape[1]), bool)
    for row, threshold in zip(found, RECALL_THRESHOLDS, strict=True):
        for overlaps in ious:
            open_overlaps = np.where(row, -1.0, overlaps)
            best = int(open_overlaps.argmax())
            row[best] |= open_overlaps[best] >= threshold
    return found.mean(axis=0)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's correlation of two rows of numbers; None if one of them is constant."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
