"""A scene: pieces laid over a background, with shadows, and the map of what is visible of each.

And a plain one, without what makes scenes hard, to measure how much that is.
"""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from examples.scenes import appearance, clutter, effects
from examples.scenes.appearance import CutOut, Piece
from examples.scenes.pools import Picture, Pools
from examples.scenes.textures import Rng, background, photo_window

MAX_OBJECTS = 24
MIN_VISIBLE_PIXELS = 12
MIN_VISIBLE_SHARE = 0.15
# A scene whose every object is too small to keep is drawn anew.
MAX_ATTEMPTS = 5
ROOM_SHARE = 0.25
MAX_PLAIN_OBJECTS = 5


@dataclass
class Canvas:
    """A scene in the making.

    Attributes:
        image: Colours, (S, S, 3) uint8.
        instances: Number of the topmost object, (S, S) uint8; 0 is background.
        full_areas: Pixels that each object would show if nothing hid it, frame included.
    """

    image: Picture
    instances: Picture
    full_areas: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The side S in pixels."""
        return len(self.image)


@dataclass
class Placement:
    """Where a piece goes: its centre in pixels, and the longer side it is to have."""

    centre_xy: NDArray[np.float64]
    side: float


def render_scene(rng: Rng, pools: Pools, size: int = 512) -> tuple[Picture, Picture]:
    """A scene and its instance map.

    Args:
        rng: Source of randomness; the scene depends on nothing else but the pools.
        pools: The pools of a split; empty ones give scenes of shapes.
        size: Side of the scene in pixels.

    Returns:
        The image, (S, S, 3) uint8 RGB, and the instances, (S, S) uint8: 0 is background, 1 to n
        the visible pixels of each object, n <= 24.
    """
    for _ in range(MAX_ATTEMPTS):
        canvas = _compose(rng, pools, size)
        instances = _drop_hidden(canvas)
        if instances.any():
            break
    return effects.degrade(rng, canvas.image), instances


def render_plain_scene(rng: Rng, pools: Pools, size: int = 512) -> tuple[Picture, Picture]:
    """Whole things, apart from each other, on a photograph, and their instance map.

    They are as large as in a scene, and turned as there. But none hides another, and nothing has
    shadows, other colours or a surface of its surroundings, blur, noise, or clutter beside it.

    Args:
        rng: Source of randomness; the scene depends on nothing else but the pools.
        pools: The pools of a split, photographs among them.
        size: Side of the scene in pixels.

    Returns:
        The image, (S, S, 3) uint8 RGB, and the instances, (S, S) uint8, as of `render_scene`.
    """
    image = photo_window(rng, pools.photographs, size, size)
    canvas = Canvas(np.array(image), np.zeros((size, size), np.uint8))
    count = int(rng.integers(1, MAX_PLAIN_OBJECTS + 1))
    for side in np.sort(_sides(rng, size, count))[::-1]:
        cut_out = appearance.random_cut_out(rng, pools, int(side))
        piece = appearance.warp(rng, cut_out, max(6, round(side)))
        for _ in range(MAX_ATTEMPTS):
            shape = piece.alpha.shape
            top, left = (int(rng.integers(size - length + 1)) for length in shape)
            if not _window(canvas.instances, top, left, *shape)[piece.alpha > 0].any():
                _paste(canvas, piece, top, left)
                break
    return canvas.image, _drop_hidden(canvas)


def _compose(rng: Rng, pools: Pools, size: int) -> Canvas:
    plan = _plan(rng, pools, size)
    if len(pools.rooms) and rng.random() < ROOM_SHARE:
        canvas = _room(rng, pools, size)
        # The room has objects of its own: up to four more, the small ones that come last.
        plan = plan[max(0, len(plan) - int(rng.integers(5))) :]
    else:
        canvas = _backdrop(rng, pools, size)
    for cut_out, placement in plan[: MAX_OBJECTS - len(canvas.full_areas)]:
        _add_object(rng, pools, canvas, cut_out, placement)
    return canvas


def _backdrop(rng: Rng, pools: Pools, size: int) -> Canvas:
    image = background(rng, pools, size)
    image = effects.adjust_tone(rng, image, 0.1)
    if rng.random() < 0.35:
        image = clutter.add_clutter(rng, image)
    if rng.random() < 0.3:
        sigma = float(np.exp(rng.uniform(np.log(0.5), np.log(size / 64))))
        image = effects.fast_blur(image, sigma)
    return Canvas(np.ascontiguousarray(image), np.zeros((size, size), np.uint8))


def _room(rng: Rng, pools: Pools, size: int) -> Canvas:
    """A rendered 3D scene, or a part of it, mirrored at random."""
    room = np.asarray(pools.rooms.random(rng))
    side = int(rng.uniform(0.5, 1.0) * min(room.shape[:2]))
    top, left = (int(rng.integers(length - side + 1)) for length in room.shape[:2])
    room = room[top : top + side, left : left + side]
    room = np.ascontiguousarray(room[:, ::-1] if rng.random() < 0.5 else room)
    image = cv2.resize(room[..., :3], (size, size), interpolation=cv2.INTER_LINEAR)
    numbers = cv2.resize(room[..., 3], (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    instances = np.asarray(numbers, np.uint8)
    areas = [int(area) for area in np.bincount(instances.ravel())[1:]]
    return Canvas(effects.adjust_tone(rng, np.asarray(image, np.uint8), 0.1), instances, areas)


def _plan(rng: Rng, pools: Pools, size: int) -> list[tuple[CutOut, Placement]]:
    """What goes where, in painting order: as a rule the large before the small."""
    count = int(np.exp(rng.uniform(np.log(1.5), np.log(17))))
    sides = _sides(rng, size, count)
    if rng.random() < 0.35:  # a subject that fills much of the frame
        sides[0] = size * rng.uniform(0.35, 0.95)
    if rng.random() < 0.8:
        sides = np.sort(sides)[::-1]
    plan: list[tuple[CutOut, Placement]] = []
    centre = rng.uniform(0.2, 0.8, 2) * size
    for side in sides:
        near = bool(plan) and rng.random() < 0.3
        reach = 0.7 * (plan[-1][1].side + side) if near else 0.0
        beside = centre + rng.uniform(-0.5, 0.5, 2) * reach
        anywhere = rng.uniform(0, 1, 2) * size
        centre = np.clip(beside if near else anywhere, 0.02 * size, 0.98 * size)
        # Large things look into the frame from its edge less often than they fill it.
        centre = centre + (size / 2 - centre) * min(1.0, 0.8 * side / size)
        cut_out = appearance.random_cut_out(rng, pools, int(side))
        plan.append((cut_out, Placement(centre, float(side))))
    if rng.random() < 0.2:
        plan += _herd(rng, pools, size)
    return plan


def _sides(rng: Rng, size: int, count: int) -> NDArray[np.float64]:
    """Longer sides of things in pixels, as many of one magnitude as of another."""
    return np.asarray(size * np.exp(rng.uniform(np.log(0.02), np.log(0.8), count)))


def _herd(rng: Rng, pools: Pools, size: int) -> list[tuple[CutOut, Placement]]:
    """Several things of a kind, in rows or strewn about: fruit, cars, books on a shelf."""
    count = int(rng.integers(3, 13))
    side = size * float(np.exp(rng.uniform(np.log(0.03), np.log(0.3))))
    cut_out = appearance.random_cut_out(rng, pools, int(side))
    columns = int(np.ceil(np.sqrt(count) * rng.uniform(0.7, 2.0)))
    spacing = side * rng.uniform(0.6, 1.3)
    start = rng.uniform(0.1, 0.6, 2) * size
    spread = rng.uniform(0, 0.3) if rng.random() < 0.5 else rng.uniform(0.3, 1.5)
    herd = []
    for position in range(count):
        cell = np.array([position % columns, position // columns])
        centre = start + spacing * (cell + rng.normal(0, spread, 2))
        if (centre > 0).all() and (centre < size).all():
            herd.append((cut_out, Placement(centre, side * float(np.exp(rng.normal(0, 0.1))))))
    return herd


def _add_object(
    rng: Rng, pools: Pools, canvas: Canvas, cut_out: CutOut, placement: Placement
) -> None:
    """Paint one thing over the canvas and number it."""
    piece = appearance.warp(rng, cut_out, max(6, round(placement.side)))
    piece = appearance.add_texture(rng, pools, piece)
    piece = replace(piece, rgb=appearance.jitter_colours(rng, piece.rgb))
    piece = appearance.light_piece(rng, piece)
    height, width = piece.alpha.shape
    left, top = (int(value) for value in placement.centre_xy - np.array([width, height]) / 2)
    if rng.random() < 0.18:
        around = _window(canvas.image, top, left, height, width)
        piece = appearance.camouflage(rng, piece, around) if around.size else piece
    if rng.random() < 0.15:
        piece = appearance.soften(rng, piece)
    if rng.random() < 0.5:
        _cast_shadow(rng, canvas, piece.alpha, top, left)
    _paste(canvas, piece, top, left)


def _window(picture: Picture, top: int, left: int, height: int, width: int) -> Picture:
    """The part of a rectangle that lies within the picture, as a view."""
    return picture[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)]


def _paste(canvas: Canvas, piece: Piece, top: int, left: int) -> None:
    height, width = piece.alpha.shape
    number = len(canvas.full_areas) + 1
    target = _window(canvas.image, top, left, height, width)
    canvas.full_areas.append(int((piece.alpha > 127).sum()))
    if not target.size:
        return
    rows = slice(max(0, -top), max(0, -top) + target.shape[0])
    columns = slice(max(0, -left), max(0, -left) + target.shape[1])
    alpha = piece.alpha[rows, columns]
    target[:] = appearance.blend(target, piece.rgb[rows, columns], alpha)
    _window(canvas.instances, top, left, height, width)[alpha > 127] = number


def _cast_shadow(rng: Rng, canvas: Canvas, alpha: Picture, top: int, left: int) -> None:
    """Darken what lies under and beside the piece: its outline, moved, or lying on the ground."""
    height, width = alpha.shape
    side = max(height, width)
    sigma = side * rng.uniform(0.01, 0.08) + 0.5
    pad = int(3 * sigma + 0.15 * side) + 2
    if rng.random() < 0.6:
        shift_x, shift_y = rng.normal(0, 0.05, 2) * side
        matrix = np.array([[1, 0, pad + shift_x], [0, 1, pad + shift_y]])
    else:  # the outline tipped over about its lower edge
        flat, slant = rng.uniform(0.05, 0.4), rng.normal(0, 0.4)
        matrix = np.array([[1, slant, pad - slant * height], [0, flat, pad + (1 - flat) * height]])
    # Shadows are blurred anyway: a quarter of the resolution does.
    step = 4 if side > 64 else 1
    size = ((width + 2 * pad) // step + 1, (height + 2 * pad) // step + 1)
    shadow = cv2.warpAffine(alpha, matrix / step, size, flags=cv2.INTER_AREA)
    shadow = cv2.GaussianBlur(shadow, (0, 0), sigma / step + 0.3)
    full = cv2.resize(shadow, (width + 2 * pad, height + 2 * pad))
    target = _window(canvas.image, top - pad, left - pad, *full.shape)
    if not target.size:
        return
    rows = slice(max(0, pad - top), max(0, pad - top) + target.shape[0])
    columns = slice(max(0, pad - left), max(0, pad - left) + target.shape[1])
    light = 1 - np.float32(rng.uniform(0.25, 0.85) / 255) * full[rows, columns]
    target[:] = appearance.scale_colours(target, light)


def _drop_hidden(canvas: Canvas) -> Picture:
    """The instance map without objects too small or too hidden to prompt, numbered densely."""
    visible = np.bincount(canvas.instances.ravel(), minlength=len(canvas.full_areas) + 1)[1:]
    shown = visible >= np.maximum(
        MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * np.array(canvas.full_areas)
    )
    table = np.zeros(256, np.uint8)
    table[1 : len(shown) + 1][shown] = np.arange(1, int(shown.sum()) + 1)
    return np.asarray(cv2.LUT(canvas.instances, table), np.uint8)
