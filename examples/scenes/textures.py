"""Rectangles of photograph, gradient, noise or pattern, to fill shapes and backgrounds with.

Every function returns uint8 RGB, (height, width, 3), and takes its randomness from a generator.
"""

import cv2
import numpy as np

from examples.scenes.pools import PackedImages, Picture, Pools

Rng = np.random.Generator


def random_colour(rng: Rng) -> Picture:
    """A colour, (3,); muted ones are likelier, as they are in photographs."""
    hue, value = rng.uniform(0, 180), rng.uniform(25, 250)
    hsv = np.array([[[hue, 255 * rng.beta(1.2, 2.0), value]]], np.uint8)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0], np.uint8)


def plain(rng: Rng, height: int, width: int) -> Picture:
    """One colour."""
    return np.full((height, width, 3), random_colour(rng), np.uint8)


def gradient(rng: Rng, height: int, width: int) -> Picture:
    """Colours that run smoothly into each other: 2 x 2 to 3 x 3 knots, cubic between."""
    knots = np.stack([random_colour(rng) for _ in range(int(rng.integers(2, 4)) ** 2)])
    side = round(len(knots) ** 0.5)
    if rng.random() < 0.6:  # near relations of one colour
        knots = (0.75 * knots[:1] + 0.25 * knots).astype(np.uint8)
    grid = knots.reshape(side, side, 3)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def noise(rng: Rng, height: int, width: int) -> Picture:
    """Several octaves of noise, coloured from one colour to another: stone, plaster, cloud."""
    # Half the resolution is enough, and four times as fast.
    small = (max(2, width // 2), max(2, height // 2))
    field = np.zeros((small[1], small[0]), np.float32)
    roughness = rng.uniform(0.4, 0.95)
    first = int(rng.integers(1, 4))
    stretch = rng.choice([1, 1, 1, 4, 8])  # drawn-out grain: wood, brushed metal
    for octave in range(first, 8):
        cells = min(2**octave, max(small))
        if cells > max(small) // 2:
            break
        grid = rng.random((max(2, cells // stretch), cells), np.float32) - 0.5
        field += roughness ** (octave - first) * cv2.resize(
            grid, small, interpolation=cv2.INTER_LINEAR
        )
    return _colour_field(rng, field, height, width)


def _colour_field(rng: Rng, field: np.ndarray, height: int, width: int) -> Picture:
    low, high = float(field.min()), float(field.max())
    level = (255 * (field - low) / max(high - low, 1e-6)).astype(np.uint8)
    if rng.random() < 0.3:  # grain that runs the other way
        level = np.ascontiguousarray(level.T)
    ends = np.stack([random_colour(rng), random_colour(rng)]).astype(np.float32)
    ends[1] = ends[0] + rng.uniform(0.15, 1.0) * (ends[1] - ends[0])
    ramp = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    table = (ends[0] + ramp * (ends[1] - ends[0])).clip(0, 255).astype(np.uint8)
    resized = cv2.resize(level, (width, height), interpolation=cv2.INTER_LINEAR)
    channels = [cv2.LUT(resized, np.ascontiguousarray(table[:, channel])) for channel in range(3)]
    return np.asarray(cv2.merge(channels), np.uint8)


def stripes(rng: Rng, height: int, width: int) -> Picture:
    """Stripes or checks at any angle: cloth, tiles, blinds."""
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.02, 0.25) * max(height, width) + 2
    rows = np.arange(height, dtype=np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)[None]
    phase = 2 * np.pi / period
    wave = np.sin(phase * (columns * np.cos(angle) + rows * np.sin(angle)))
    if rng.random() < 0.4:
        wave = wave * np.sin(phase * (rows * np.cos(angle) - columns * np.sin(angle)))
    sharpness = rng.choice([1.0, 3.0, 8.0])
    return _colour_field(rng, np.tanh(sharpness * wave).astype(np.float32), height, width)


def photo_window(rng: Rng, photos: PackedImages, height: int, width: int) -> Picture:
    """A window of a photograph, between a seventh and the whole of its shorter side."""
    group = photos.groups[rng.integers(len(photos.groups))]
    sides = photos.index[group, 1:3].min(axis=1)
    share = float(np.exp(rng.uniform(np.log(0.15), 0.0)))
    # The smallest size that has almost a pixel for each one wanted; else the largest.
    enough = np.flatnonzero(share * sides >= 0.75 * max(height, width))
    chosen = int(enough[np.argmin(sides[enough])] if len(enough) else np.argmax(sides))
    photo = photos[int(group[chosen])]
    return _window(rng, photo, (height, width), max(8.0, share * float(sides[chosen])))


def photo_texture(rng: Rng, photos: PackedImages, height: int, width: int) -> Picture:
    """A small window of a photograph, at nearly its own resolution: a surface, not a view."""
    zoom = float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
    return _window(rng, photos.random(rng), (height, width), zoom * max(height, width))


def _window(rng: Rng, photo: Picture, size_hw: tuple[int, int], side: float) -> Picture:
    """A random window whose longer side is about `side`, resized, perhaps mirrored or turned."""
    height, width = size_hw
    stretch = float(np.exp(rng.normal(0, 0.1)))
    scale = min(side, *photo.shape[:2]) / max(height, width)
    window_height = int(np.clip(scale * height * stretch, 4, photo.shape[0]))
    window_width = int(np.clip(scale * width / stretch, 4, photo.shape[1]))
    top = int(rng.integers(photo.shape[0] - window_height + 1))
    left = int(rng.integers(photo.shape[1] - window_width + 1))
    window = np.asarray(photo[top : top + window_height, left : left + window_width])
    method = cv2.INTER_AREA if window_height > 1.3 * height else cv2.INTER_LINEAR
    resized = cv2.resize(window, (width, height), interpolation=method)
    if rng.random() < 0.5:
        resized = cv2.flip(resized, 1)
    if rng.random() < 0.15:
        resized = cv2.flip(resized, 0)
    return np.asarray(resized, np.uint8)


def any_texture(rng: Rng, pools: Pools, height: int, width: int) -> Picture:
    """A filling for a shape or a patch: photographs most of the time, if there are any."""
    draw = rng.random()
    if draw < 0.6 and len(pools.photographs):
        return photo_texture(rng, pools.photographs, height, width)
    if draw < 0.65 and len(pools.designs):
        return photo_texture(rng, pools.designs, height, width)
    makers = (noise, gradient, plain, stripes)
    maker = makers[int(rng.choice(len(makers), p=(0.35, 0.3, 0.25, 0.1)))]
    return maker(rng, height, width)


def background(rng: Rng, pools: Pools, size: int) -> Picture:
    """A whole background: a photograph, a wallpaper, a computed texture, or a floor and a wall."""
    draw = rng.random()
    if draw < 0.17:
        return _floor_and_wall(rng, pools, size)
    if draw < 0.72 and len(pools.photographs):
        return photo_window(rng, pools.photographs, size, size)
    if draw < 0.85 and len(pools.designs):
        return photo_window(rng, pools.designs, size, size)
    makers = (noise, gradient, plain, stripes)
    maker = makers[int(rng.choice(len(makers), p=(0.45, 0.35, 0.1, 0.1)))]
    return maker(rng, size, size)


def _floor_and_wall(rng: Rng, pools: Pools, size: int) -> Picture:
    """Two textures that meet at a horizon, the lower one seen at a slant."""
    wall = any_texture(rng, pools, size, size)
    floor = any_texture(rng, pools, size, size)
    horizon = rng.uniform(0.15, 0.75) * size
    tilt = rng.normal(0, 0.04) * size
    spread = rng.uniform(0.3, 1.5) * size
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    seen = np.array(
        [
            [0, horizon - tilt],
            [size, horizon + tilt],
            [size + spread, size * 1.05],
            [-spread, size * 1.05],
        ],
        np.float32,
    )
    # The far edge overlaps the sides as well, so that no corner of the floor stays empty.
    seen[0, 0], seen[1, 0] = -0.2 * size, 1.2 * size
    matrix = cv2.getPerspectiveTransform(corners, seen)
    warped = wall.copy()
    cv2.warpPerspective(floor, matrix, (size, size), dst=warped, borderMode=cv2.BORDER_TRANSPARENT)
    return np.asarray(warped, np.uint8)
