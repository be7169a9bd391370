"""Free shapes: opacity masks that no picture file holds.

Every maker returns uint8 opacity, (side, side), drawn with anti-aliased edges.
"""

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np

from examples.scenes.pools import Picture, crop_to_alpha
from examples.scenes.textures import Rng

# Coordinates are handed to OpenCV in sixteenths of a pixel.
SUBPIXEL_BITS = 4


def _fill(points_xy: np.ndarray, side: int, opacity: int = 255) -> Picture:
    mask = np.zeros((side, side), np.uint8)
    _fill_into(mask, points_xy, opacity)
    return mask


def _fill_into(mask: Picture, points_xy: np.ndarray, opacity: int) -> None:
    fixed = np.round(points_xy * 2**SUBPIXEL_BITS).astype(np.int32)
    cv2.fillPoly(mask, [fixed.reshape(-1, 1, 2)], opacity, cv2.LINE_AA, SUBPIXEL_BITS)


def _polar(angles: np.ndarray, radii: np.ndarray, side: int) -> np.ndarray:
    directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return side / 2 + radii[:, None] * directions * side / 2


def blob(rng: Rng, side: int) -> Picture:
    """A smooth outline: a circle whose radius waves."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radii = np.ones_like(angles)
    roughness = rng.uniform(0.05, 0.4)
    for frequency in range(1, int(rng.integers(3, 9))):
        wave = np.cos(frequency * angles + rng.uniform(0, 2 * np.pi))
        radii += roughness * rng.normal() / frequency**0.8 * wave
    radii = np.maximum(radii, 0.12)
    return _fill(_polar(angles, 0.97 * radii / radii.max(), side), side)


def polygon(rng: Rng, side: int) -> Picture:
    """A polygon of 3 to 9 corners."""
    corners = int(rng.integers(3, 10))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    if rng.random() < 0.4:
        angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    radii = rng.uniform(rng.uniform(0.3, 0.97), 0.98, corners)
    return _fill(_polar(angles, radii, side), side)


def ellipse(rng: Rng, side: int) -> Picture:
    """A full ellipse, or a slice of one."""
    angles = np.linspace(0, 2 * np.pi, 72)
    if rng.random() < 0.15:
        angles = np.linspace(0, rng.uniform(1.5, 5.5), 60)
        return _fill(np.vstack([_polar(angles, 0 * angles + 0.97, side), [[side / 2] * 2]]), side)
    points = _polar(angles, np.full_like(angles, 0.97), side) - side / 2
    return _fill(points * [1, rng.uniform(0.35, 1.0)] + side / 2, side)


def bar(rng: Rng, side: int) -> Picture:
    """A thin bar, straight or bent: a stick, a cable, a limb."""
    steps = np.linspace(0, 1, 24)
    bend = rng.normal(0, 0.25) if rng.random() < 0.6 else 0.0
    centres_y = side * (0.5 + bend * (steps**2 - steps) * 2)
    width = side * rng.uniform(0.015, 0.08)
    widths = width * (1 + rng.uniform(-0.6, 0.6) * steps)
    columns = side * (0.03 + 0.94 * steps)
    upper = np.stack([columns, centres_y - widths], -1)
    lower = np.stack([columns, centres_y + widths], -1)
    return _fill(np.vstack([upper, lower[::-1]]), side)


def ring(rng: Rng, side: int) -> Picture:
    """A ring: a blob or an ellipse with a hole."""
    outer = blob(rng, side) if rng.random() < 0.3 else ellipse(rng, side)
    share = rng.uniform(0.35, 0.85)
    inner_side = max(4, round(side * share))
    inner = cv2.resize(outer, (inner_side, inner_side), interpolation=cv2.INTER_AREA)
    start = (side - inner_side) // 2
    hole = outer[start : start + inner_side, start : start + inner_side]
    np.minimum(hole, 255 - inner, out=hole)
    return outer


def box(rng: Rng, side: int) -> Picture:
    """A rectangle with rounded corners."""
    steps = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    # A superellipse of power 0.1 is a box with slightly rounded corners, of 1 an ellipse.
    power = rng.choice([0.05, 0.15, 0.3, 0.6])
    points = np.stack([np.cos(steps), np.sin(steps)], -1)
    points = np.sign(points) * np.abs(points) ** power
    return _fill(side / 2 + 0.47 * side * points * [1, rng.uniform(0.3, 1)], side)


def union(rng: Rng, side: int) -> Picture:
    """Bars and discs that overlap, like a letter or a figure."""
    mask = np.zeros((side, side), np.uint8)
    knots = rng.uniform(0.15, 0.85, (int(rng.integers(3, 6)), 2)) * side
    thickness = int(side * rng.uniform(0.06, 0.22)) + 1
    for start, end in pairwise(knots):
        ends = [tuple(int(value) for value in point) for point in (start, end)]
        cv2.line(mask, ends[0], ends[1], 255, thickness, cv2.LINE_AA)
        if rng.random() < 0.4:
            cv2.circle(mask, ends[0], int(side * rng.uniform(0.08, 0.15)), 255, -1, cv2.LINE_AA)
    return mask


def cloud(rng: Rng, side: int) -> Picture:
    """The largest part of a thresholded noise: frayed, with bays and holes."""
    cells = int(rng.integers(3, 7))
    field = cv2.resize(rng.random((cells, cells), np.float32), (side, side))
    if rng.random() < 0.6:
        fine = rng.random((4 * cells, 4 * cells), np.float32)
        field = field + 0.25 * cv2.resize(fine, (side, side))
    steps = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    field -= 0.8 * np.maximum(steps[:, None] + steps[None] - 0.4, 0)
    threshold = np.float32(rng.uniform(0.35, 0.55))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((field > threshold).astype("u1"))
    if len(statistics) < 2:
        return blob(rng, side)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return np.asarray(cv2.GaussianBlur((labels == largest).astype("u1") * 255, (3, 3), 0))


def branches(rng: Rng, side: int) -> Picture:
    """A trunk that forks: plants, antlers, hands."""
    mask = np.zeros((side, side), np.uint8)
    tips = [(np.array([side / 2, side * 0.95]), -np.pi / 2, side * rng.uniform(0.04, 0.1))]
    for _ in range(int(rng.integers(2, 5))):
        grown = []
        for start, angle, thickness in tips:
            for turn in rng.normal(0, 0.5, int(rng.integers(1, 4))):
                step = side * rng.uniform(0.15, 0.28)
                direction = np.array([np.cos(angle + turn), np.sin(angle + turn)])
                end = start + step * direction
                ends = [tuple(int(value) for value in point) for point in (start, end)]
                cv2.line(mask, ends[0], ends[1], 255, max(2, int(thickness)), cv2.LINE_AA)
                grown.append((end, angle + turn, thickness * 0.7))
        tips = grown[:8]
    return mask


MAKERS: dict[Callable[[Rng, int], Picture], float] = {
    blob: 0.24,
    polygon: 0.14,
    ellipse: 0.14,
    bar: 0.08,
    ring: 0.08,
    box: 0.14,
    union: 0.08,
    cloud: 0.06,
    branches: 0.04,
}


def random_shape(rng: Rng, side: int) -> Picture:
    """A shape's opacity, cropped to its box; its longer side is at most `side` pixels."""
    makers = list(MAKERS)
    maker = makers[int(rng.choice(len(makers), p=list(MAKERS.values())))]
    mask = maker(rng, side)
    cropped = crop_to_alpha(np.dstack([mask] * 4))
    return np.ascontiguousarray(cropped[..., 3])


def placed_shape(
    rng: Rng, height: int, width: int, side: int
) -> tuple[tuple[slice, slice], Picture]:
    """A shape somewhere within a picture of that size: its rows and columns, and its opacity.

    What is larger than the picture is cut off.
    """
    shape = random_shape(rng, side)[:height, :width]
    top, left = (
        int(rng.integers(whole - own + 1))
        for whole, own in zip((height, width), shape.shape, strict=True)
    )
    return np.s_[top : top + shape.shape[0], left : left + shape.shape[1]], shape
