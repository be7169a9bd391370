"""Outlines of masks: exact rings along pixel edges, and the two ways in which tools fill rings.

Coordinates are those of a picture that spans [0, W] x [0, H]: pixel (row 0, column 0) is the square
from (0, 0) to (1, 1). Of every ring the inside lies to the right of somebody who walks it on the
screen, so that in numbers (y growing) outer rings have a positive area and holes a negative one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage


class Polygon(NamedTuple):
    """A connected part of a mask. No ring meets itself; rings meet others in single corners."""

    outer: np.ndarray
    """(n, 2) float64, x and y of the corners; the last is joined with the first."""
    holes: list[np.ndarray]
    """Rings of the same form."""

    @property
    def rings(self) -> list[np.ndarray]:
        """The outer ring and the holes."""
        return [self.outer, *self.holes]


def trace(mask: np.ndarray, inset: float = 0.0) -> list[Polygon]:
    """The exact outlines of a mask, along the edges of its pixels.

    A polygon is what hangs together by edges of pixels; pixels that touch at a corner alone are
    two. `fill` of all the rings is the mask again, bit for bit.

    Args:
        mask: (H, W) bool.
        inset: Pixels, less than half of one, that the rings are moved into the mask. They touch
            nowhere then, so that a hole that touches the outer ring in a corner opens into it.

    Returns:
        The polygons by the row, then the column, of their first pixel; none for an empty mask.

    Raises:
        ValueError: It has not two axes.
    """
    mask = np.asarray(mask, bool)
    if mask.ndim != 2:
        raise ValueError(f"Expected a mask of shape (H, W), got {mask.shape}.")
    regions, count = ndimage.label(mask)
    walks = [*_walks(mask)]
    if not inset:
        walks = [ring for walk in walks for ring in _without_touching_itself(walk)]
    if not walks:
        return []
    starts = np.cumsum([0, *map(len, walks)])
    rows, columns = np.divmod(np.fromiter(chain.from_iterable(walks), int), mask.shape[1] + 1)
    corners = np.stack([columns, rows], axis=1).astype(np.float64)
    following = np.roll(corners, -1, axis=0)
    following[starts[1:] - 1] = corners[starts[:-1]]
    areas = np.add.reduceat(_cross(corners, following), starts[:-1])
    first, second = corners[starts[:-1]], following[starts[:-1]]
    x, y = ((first + second + _inwards(second - first)) / 2).astype(int).T  # a pixel inside
    moved = corners
    if inset:
        inwards, preceding = _inwards(following - corners), np.arange(len(corners)) - 1
        preceding[starts[:-1]] = starts[1:] - 1
        moved = corners + inset * (inwards + inwards[preceding])
    outer = [np.zeros((0, 2))] * count
    holes: list[list[np.ndarray]] = [[] for _ in range(count)]
    for ring, region, area in zip(
        np.split(moved, starts[1:-1]), regions[y, x] - 1, areas, strict=True
    ):
        if area > 0:
            outer[region] = ring
        else:
            holes[region].append(ring)
    return [Polygon(*parts) for parts in zip(outer, holes, strict=True)]


def signed_area(ring: np.ndarray) -> float:
    """The area in a ring: above 0 for outer rings, below 0 for holes."""
    return float(_cross(ring, np.roll(ring, -1, axis=0)).sum() / 2)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cross products of vectors (..., 2)."""
    return a[..., 0] * b[..., 1] - b[..., 0] * a[..., 1]


def _inwards(step: np.ndarray) -> np.ndarray:
    """Unit vectors (..., 2) to the inside, for steps (..., 2) along one axis."""
    direction = np.sign(step)
    return np.stack([-direction[..., 1], direction[..., 0]], axis=-1)


def _walks(mask: np.ndarray) -> Iterator[list[int]]:
    """The rings of all edges, each turning around its own pixels.

    A ring is a list of corners, numbered row by row of the (H + 1, W + 1) that there are.
    """
    padded = np.pad(mask, 1)
    pixels = [padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]]
    above_left, above_right, below_left, below_right = pixels
    is_meeting = (above_left == below_right) & (above_right == below_left)
    is_meeting &= above_left != above_right  # two pixels touch at the corner: it counts twice
    is_corner = above_left ^ above_right ^ below_left ^ below_right
    places = np.flatnonzero(is_corner | is_meeting)
    places = np.repeat(places, 1 + is_meeting.ravel()[places])
    rows, columns = np.divmod(places, padded.shape[1] - 1)
    # In a row of corners the first and the second are the ends of an edge, and so on. Of a corner
    # that counts twice, the first ends the edge on its left, the second that on its right.
    is_second = np.diff(places, prepend=-1) == 0
    is_twice = is_second | np.append(is_second[1:], False)
    goes_down = is_second ^ (is_twice & ~above_left.ravel()[places])
    by_column = np.lexsort((goes_down, rows, columns))
    other_end = np.empty(len(places), np.int64)  # of the vertical edge
    other_end[by_column[0::2]], other_end[by_column[1::2]] = by_column[1::2], by_column[0::2]
    left, right = np.arange(0, len(places), 2), np.arange(1, len(places), 2)
    is_inside_below = below_right.ravel()[places[0::2]]
    starts = np.where(is_inside_below, left, right)
    ends = np.where(is_inside_below, right, left)
    edges = np.stack([places[starts], places[ends]], axis=1).tolist()
    for cycle in _cycles((other_end[ends] // 2).tolist()):
        yield [corner for edge in cycle for corner in edges[edge]]


def _cycles(following: list[int]) -> Iterator[list[int]]:
    """The cycles of a permutation."""
    is_new = bytearray(b"\1" * len(following))
    for index in range(len(following)):
        cycle = []
        while is_new[index]:
            is_new[index] = 0
            cycle.append(index)
            index = following[index]
        if cycle:
            yield cycle


def _without_touching_itself(ring: list[int]) -> list[list[int]]:
    """The ring, cut into several where it comes to one corner twice."""
    if len(set(ring)) == len(ring):
        return [ring]
    rings: list[list[int]] = []
    way: list[int] = []
    place_on_way: dict[int, int] = {}
    for corner in ring:
        start = place_on_way.get(corner)
        if start is not None:
            rings.append(way[start:])
            for passed in way[start:]:
                del place_on_way[passed]
            del way[start:]
        place_on_way[corner] = len(way)
        way.append(corner)
    return [*rings, way]


def fill(rings: Iterable[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of pixels whose centres lie in an odd number of the rings.

    So holes stay open. pycocotools and geometry libraries mean that.

    Args:
        rings: (n, 2) x and y of corners, each; they may reach outside the image.
        size_hw: Height and width.
    """
    height, width = size_hw
    rings = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings]
    starts = np.concatenate([np.zeros((0, 2)), *rings])
    ends = np.concatenate([np.zeros((0, 2)), *(np.roll(ring, -1, axis=0) for ring in rings)])
    (x, y), (dx, dy) = starts.T, (ends - starts).T
    lowest, highest = np.minimum(y, y + dy), np.maximum(y, y + dy)
    first, last = (
        np.clip(np.ceil(edge - 0.5), 0, height).astype(int) for edge in (lowest, highest)
    )
    crossings = last - first  # an edge crosses the centres of so many rows
    edge = np.repeat(np.arange(len(starts)), crossings)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings - first, crossings)
    at = x[edge] + (row + 0.5 - y[edge]) * dx[edge] / dy[edge]
    column = np.clip(np.ceil(at - 0.5), 0, width).astype(int)
    changes = np.bincount(row * (width + 1) + column, minlength=height * (width + 1))
    return (
        np.cumsum(changes.reshape(height, width + 1)[:, :-1] % 2, axis=1, dtype=np.uint8) % 2 == 1
    )


def paint(rings: Sequence[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of polygons that are painted with their borders, coordinates cut to integers.

    labelme (PIL), ultralytics and supervision (OpenCV) do that. It makes areas a little larger.

    Args:
        rings: (n, 2) x and y of corners, each.
        size_hw: Height and width.
    """
    canvas = Image.new("L", size_hw[::-1])
    draw = ImageDraw.Draw(canvas)
    for ring in rings:
        corners = np.asarray(ring, np.float64).astype(int)
        draw.polygon([*map(tuple, corners.tolist())], outline=1, fill=1)
    return np.array(canvas, bool)
