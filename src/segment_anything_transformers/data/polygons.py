"""Masks as polygons with few corners, as files of annotations hold them.

An outline is simplified within a tolerance, and no further than leaves the mask what it is: filled
the way its readers fill it, the polygon has an IoU of at least `LEAST_IOU` with the mask, and no
two of its edges cross. Where that would not hold, the outline keeps more corners, at worst all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .outlines import Polygon, fill, paint, trace

TOLERANCE = 1.0
"""Pixels that a corner may lie beside the simplified outline."""
LEAST_IOU = 0.99
INSET, SHIFT = 0.325, -0.225
"""Pixels that outlines for painting readers lie within the mask, and are moved then.

So their coordinates are the indices of the mask's outermost pixels and 0.1 to 0.45 more: cut to
integers, as labelme and ultralytics do, or rounded, as supervision does, they are the indices.
"""

_CORNER_CUT = 0.354  # half the diagonal of half a pixel, see `_without_steps`
_SMALLEST_TOLERANCE = 0.5  # below it hardly a corner goes
_ROUNDINGS = np.array([(0.1, 0.1), (-0.1, -0.1), (0.1, -0.1), (-0.1, 0.1)])
"""Readers differ where an edge hits a pixel's centre; pycocotools rounds to a fifth of a pixel."""
_PAINTED_APART = 0.35  # pixels a corner that PIL and OpenCV paint differently, at most as a rule
_MOST_EDGES = 4000  # more are not compared with each other; such outlines keep all corners


def mask_polygons(
    mask: np.ndarray, tolerance: float = TOLERANCE, painted: bool = False
) -> list[Polygon]:
    """The polygons of a mask, simplified.

    Args:
        mask: (H, W) bool.
        tolerance: Pixels that a corner of the exact outline may lie beside the simplified one; 0
            keeps every corner.
        painted: Whether readers paint polygons with their borders (`outlines.paint`) rather than
            fill what their edges enclose (`outlines.fill`).

    Returns:
        The polygons of `outlines.trace`, each with at least three corners a ring.

    Raises:
        ValueError: The tolerance is below 0, or the mask has not two axes.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more pixels, got {tolerance}.")
    polygons = trace(mask, INSET if painted else 0.0)
    exact = [ring for polygon in polygons for ring in polygon.rings]
    if painted:
        exact = [ring + SHIFT for ring in exact]
    tolerances = np.full(len(exact), float(tolerance))
    while True:
        tolerances[tolerances < _SMALLEST_TOLERANCE] = 0
        rings = [
            _simplified(ring, most, painted) for ring, most in zip(exact, tolerances, strict=True)
        ]
        if not tolerances.any():
            return _with_rings(polygons, rings)
        crossing = _crossing(rings)
        if not crossing.any():
            simplified = _with_rings(polygons, rings)
            if _keep(simplified, mask, painted):
                return simplified
        is_simplified = tolerances > 0
        wrong = crossing & is_simplified
        tolerances[wrong if wrong.any() else is_simplified] /= 2


def _with_rings(polygons: Sequence[Polygon], rings: Sequence[np.ndarray]) -> list[Polygon]:
    """The polygons with other rings, in their order."""
    remaining = iter(rings)
    return [
        Polygon(next(remaining), [next(remaining) for _ in polygon.holes]) for polygon in polygons
    ]


def _keep(polygons: Sequence[Polygon], mask: np.ndarray, painted: bool) -> bool:
    """Whether the mask is there again when the polygons are filled, whoever fills them."""
    rings = [ring for polygon in polygons for ring in polygon.rings]
    if painted:
        filled = paint([without_holes(polygon) for polygon in polygons], mask.shape)
        return _is_like(filled, mask, sum(map(len, rings)) * _PAINTED_APART)
    return all(_is_like(fill([ring + a for ring in rings], mask.shape), mask) for a in _ROUNDINGS)


def _is_like(filled: np.ndarray, mask: np.ndarray, more_wrong: float = 0.0) -> bool:
    """Whether the IoU would be enough with some more wrong pixels."""
    right, all_pixels = np.count_nonzero(filled & mask), np.count_nonzero(filled | mask)
    return bool(right - more_wrong >= LEAST_IOU * all_pixels)


# ---------------------------------------------------------------------------------- fewer corners


def _simplified(ring: np.ndarray, tolerance: float, painted: bool) -> np.ndarray:
    """A ring with few corners that the given one lies within the tolerance of.

    Source: Ramer 1972, Douglas and Peucker 1973.
    """
    if tolerance == 0 or len(ring) <= 4:
        return ring
    exact = ring
    if painted:
        ring = _pixel_by_pixel(ring)
    else:
        ring, tolerance = _without_steps(ring), tolerance - _CORNER_CUT
    closed = np.concatenate([ring, ring[:1]])
    farthest = int(np.square(ring - ring[0]).sum(axis=1).argmax())
    is_kept = np.zeros(len(closed), bool)
    is_kept[[0, farthest]] = True
    waiting = [(0, farthest), (farthest, len(ring))]
    while waiting:
        first, last = waiting.pop()
        if last - first < 2:
            continue
        distances = _distances(closed[first + 1 : last], closed[first], closed[last])
        worst = int(distances.argmax())
        if distances[worst] > tolerance**2:
            middle = first + 1 + worst
            is_kept[middle] = True
            waiting += [(first, middle), (middle, last)]
    kept = ring[is_kept[:-1]]
    return kept if len(kept) >= 3 else exact


def _without_steps(ring: np.ndarray) -> np.ndarray:
    """The ring with the corners of steps cut off, half a pixel on each side.

    Slanted edges of objects are stairs of pixels; their corners lie beside what is meant, in turn
    on the one and on the other side. No centre of a pixel changes sides.
    """
    after = np.roll(ring, -1, axis=0) - ring
    length = np.abs(after).sum(axis=1)
    is_step = (length < 1.5) | (np.roll(length, 1) < 1.5)
    half = after * (np.minimum(length, 1.0) / length)[:, None] / 2
    return _cut(ring, is_step, np.roll(half, 1, axis=0), half)


def _pixel_by_pixel(ring: np.ndarray) -> np.ndarray:
    """The ring without the pixels in inner corners, past which a painted line goes aslant."""
    after = np.roll(ring, -1, axis=0) - ring
    before = np.roll(after, 1, axis=0)
    is_inner = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0] < 0
    points = _cut(ring, is_inner, np.sign(before), np.sign(after))
    pixels = np.floor(points)
    return points[(pixels != np.roll(pixels, 1, axis=0)).any(axis=1)]


def _cut(ring: np.ndarray, is_cut: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """The ring with some corners cut off, from so far before them to so far after them."""
    ends = np.stack([ring - before, ring + after], axis=1)
    points = np.where(is_cut[:, None, None], ends, ring[:, None]).reshape(-1, 2)
    return points[(points != np.roll(points, 1, axis=0)).any(axis=1)]


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Squared distances of points (n, 2) to the line from start to end, which ends there."""
    along, away = end - start, points - start
    length = float(along @ along)
    share = np.clip(away @ along / length, 0, 1) if length else np.zeros(len(points))
    return np.square(away - share[:, None] * along).sum(axis=1)


def _crossing(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Which of the rings cross or touch themselves or another, but for corners they share."""
    starts = np.concatenate(rings)
    if len(starts) > _MOST_EDGES:
        return np.ones(len(rings), bool)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    near = ((low[:, None] <= high) & (high[:, None] >= low)).all(axis=-1)
    a, b = np.nonzero(np.triu(near, 1))
    ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    wrong = np.zeros(len(rings), bool)
    for edges in (a, b):
        wrong[ring_of[edges[_meet(starts[a], ends[a], starts[b], ends[b])]]] = True
    return wrong


def _meet(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Whether edges a to b and c to d, (n, 2) each, have more in common than one end of both."""

    def side(p: np.ndarray, q: np.ndarray, r: np.ndarray) -> np.ndarray:
        turn = (q - p)[:, 0] * (r - p)[:, 1] - (q - p)[:, 1] * (r - p)[:, 0]
        return np.sign(np.where(np.abs(turn) < 1e-9, 0, turn))

    of_c, of_d, of_a, of_b = side(a, b, c), side(a, b, d), side(c, d, a), side(c, d, b)
    meet = (of_c * of_d <= 0) & (of_a * of_b <= 0)
    for end, far in ((a, b), (b, a)):
        for other_end, other_far in ((c, d), (d, c)):
            is_shared = (end == other_end).all(axis=1)
            # Two edges of one corner meet elsewhere too if they lie on one line, on one side of it.
            in_line = (side(end, far, other_far) == 0) & (
                ((far - end) * (other_far - other_end)).sum(axis=1) > 0
            )
            meet = np.where(is_shared, in_line, meet)
    return meet


# ----------------------------------------------------------------------- one ring instead of many


def without_holes(polygon: Polygon) -> np.ndarray:
    """One ring (n, 2) for a polygon with holes, which are cut open.

    From the leftmost corner of each hole a cut runs to the left, to the next ring, there and back:
    it lies within the polygon and has no width.
    """
    ring = polygon.outer
    for hole in sorted(polygon.holes, key=lambda hole: hole[:, 0].min()):
        start = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        hole = np.roll(hole, -start, axis=0)
        edge, target = _hit_to_the_left(ring, hole[0])
        ring = np.concatenate(
            [ring[: edge + 1], [target], hole, hole[:1], [target], ring[edge + 1 :]]
        )
    return ring


def _hit_to_the_left(ring: np.ndarray, point: np.ndarray) -> tuple[int, np.ndarray]:
    """The edge of a ring that a ray from a point to the left meets first, and where."""
    following = np.roll(ring, -1, axis=0)
    (x, y), (dx, dy) = ring.T, (following - ring).T
    meets = (np.minimum(y, y + dy) <= point[1]) & (np.maximum(y, y + dy) >= point[1])
    is_flat = dy == 0
    share = np.where(is_flat, 0.0, (point[1] - y) / np.where(is_flat, 1.0, dy))
    at = np.where(is_flat, np.minimum(x, x + dx), x + share * dx)
    meets &= at <= point[0] + 1e-9
    at[is_flat] = np.minimum(np.maximum(x, x + dx), point[0])[is_flat]
    at[~meets] = -np.inf
    edge = int(at.argmax())
    return edge, np.array([at[edge], point[1]])


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One ring (n, 2) for several, for formats in which an object has only one.

    Each is joined, there and back, with the nearest corner of those before it; these lines have no
    width, and a reader that paints borders draws them a pixel wide.
    """
    ring = rings[0]
    for further in rings[1:]:
        distances = np.square(ring[:, None] - further).sum(axis=-1)
        here, there = np.unravel_index(int(distances.argmin()), distances.shape)
        turned = np.roll(further, -there, axis=0)
        ring = np.concatenate([ring[: here + 1], turned, turned[:1], ring[here:]])
    return ring
