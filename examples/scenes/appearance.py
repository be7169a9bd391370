"""Pieces: a cut-out thing with its opacity, and what light and surface do to its colours."""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from examples.scenes.pools import Picture, Pools
from examples.scenes.shapes import placed_shape, random_shape
from examples.scenes.textures import Rng, any_texture

# Light and relief are smooth: they are computed on patches of at most this side.
RELIEF_SIDE = 96


@dataclass
class CutOut:
    """A thing as it comes from a pool.

    Attributes:
        rgba: Colours and opacity, (height, width, 4) uint8; the colours are meaningful where the
            opacity is zero as well.
        is_drawn: Whether the colours are flat, as clip art and shapes have them.
    """

    rgba: Picture
    is_drawn: bool


@dataclass
class Piece:
    """A thing at its size in the scene.

    Attributes:
        rgb: Colours, (height, width, 3) uint8.
        alpha: Opacity, (height, width) uint8.
        is_drawn: Whether the colours are flat, as clip art and shapes have them.
    """

    rgb: Picture
    alpha: Picture
    is_drawn: bool


def random_cut_out(rng: Rng, pools: Pools, side: int) -> CutOut:
    """A thing from the pools, or a free shape.

    Args:
        rng: Source of randomness.
        pools: The pools of a split.
        side: Longer side that the piece will have in the scene, in pixels.
    """
    weights = np.array([0.42 * (len(pools.clips) > 0), 0.3 * (len(pools.bodies) > 0), 0.28])
    kind = int(rng.choice(3, p=weights / weights.sum()))
    if kind == 2:
        return CutOut(_filled_shape(rng, pools, int(np.clip(1.3 * side, 48, 384))), is_drawn=True)
    pool = pools.clips if kind == 0 else pools.bodies
    return CutOut(np.asarray(pool.random(rng)), is_drawn=kind == 0)


def _filled_shape(rng: Rng, pools: Pools, side: int) -> Picture:
    alpha = random_shape(rng, side)
    height, width = alpha.shape
    rgb = any_texture(rng, pools, height, width)
    if rng.random() < 0.25:  # two surfaces: a lid, a label, a coat
        split = _smooth_field(rng, height, width, 2) > 0
        rgb = np.where(split[..., None], any_texture(rng, pools, height, width), rgb)
    if rng.random() < 0.45:
        rgb = _add_parts(rng, pools, rgb)
    return np.dstack([rgb, alpha])


def _add_parts(rng: Rng, pools: Pools, rgb: Picture) -> Picture:
    """The filling with smaller shapes on it: windows, wheels, eyes, prints, stains.

    An object has edges of its own inside; the outline to find is not the nearest edge.
    """
    rgb = np.ascontiguousarray(rgb).copy()
    height, width = rgb.shape[:2]
    for _ in range(int(rng.integers(1, 7))):
        side = int(max(height, width) * rng.uniform(0.1, 0.5))
        window, part = placed_shape(rng, height, width, max(12, side))
        rgb[window] = blend(rgb[window], any_texture(rng, pools, *part.shape), part)
    return rgb


def blend(below: Picture, above: Picture, alpha: Picture) -> Picture:
    """One picture over another with an opacity, (height, width) uint8."""
    opacity = alpha.astype(np.float32) * np.float32(1 / 255)
    mixed = cv2.blendLinear(
        np.ascontiguousarray(above), np.ascontiguousarray(below), opacity, 1 - opacity
    )
    return np.asarray(mixed, np.uint8)


def _smooth_field(rng: Rng, height: int, width: int, cells: int) -> np.ndarray:
    """A smooth random field around zero, (height, width) float32."""
    grid = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)


def warp(rng: Rng, cut_out: CutOut, side: int) -> Piece:
    """The thing at its size in the scene: mirrored, stretched, turned, seen at a slant.

    Args:
        rng: Source of randomness.
        cut_out: A thing of any size.
        side: Longer side of the corners' bounding box after the warp, in pixels.
    """
    height, width = cut_out.rgba.shape[:2]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    moved = _move_corners(rng, corners - [width / 2, height / 2])
    small = _shrink(cut_out.rgba, 1.3 * side)
    margin = 1.5 + 1.5 * side / max(small.shape[:2])  # one pixel of the source, and some
    moved = (moved - moved.min(axis=0)) * side / np.ptp(moved, axis=0).max() + margin
    out_width, out_height = (int(np.ceil(value + margin)) for value in moved.max(axis=0))
    factors = np.array(small.shape[1::-1]) / [width, height]
    # The border keeps the colours and has no opacity: the outermost pixels fade, not darken.
    padded = cv2.copyMakeBorder(small, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    padded[[0, -1], :, 3] = padded[:, [0, -1], 3] = 0
    matrix = cv2.getPerspectiveTransform(
        (corners * factors + 1).astype(np.float32), moved.astype(np.float32)
    )
    warped = cv2.warpPerspective(
        padded, matrix, (out_width, out_height), borderMode=cv2.BORDER_REPLICATE
    )
    rgb = cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)
    alpha = cv2.extractChannel(warped, 3)
    return Piece(np.asarray(rgb), np.asarray(alpha), cut_out.is_drawn)


def _move_corners(rng: Rng, corners: np.ndarray) -> np.ndarray:
    """Corners around the origin, (4, 2), stretched, mirrored, turned, slanted."""
    turn = rng.normal(0, 0.2) if rng.random() < 0.6 else rng.uniform(-np.pi, np.pi)
    stretch = np.exp(rng.normal(0, 0.15) * np.array([1, -1]))
    mirror = np.array([rng.choice([-1, 1]), -1 if rng.random() < 0.08 else 1])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = (corners * stretch * mirror) @ rotation.T
    if rng.random() < 0.4:
        moved = moved + rng.normal(0, 0.07, (4, 2)) * np.ptp(moved, axis=0)
    return moved


def _shrink(rgba: Picture, side: float) -> Picture:
    """The picture, not much larger than it will be seen: a warp alone would alias."""
    height, width = rgba.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return rgba
    size = (max(2, round(width * scale)), max(2, round(height * scale)))
    return np.asarray(cv2.resize(rgba, size, interpolation=cv2.INTER_AREA), np.uint8)


def jitter_colours(rng: Rng, rgb: Picture) -> Picture:
    """The picture with another hue, saturation, gamma, contrast and brightness."""
    if rng.random() < 0.6:
        hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)
        turn = rng.normal(0, 12) if rng.random() < 0.6 else rng.uniform(0, 180)
        levels = np.arange(256)
        saturation = np.clip(levels * rng.uniform(0.15, 1.2), 0, 255)
        table = np.stack([(levels + turn) % 180, saturation, levels], -1).astype(np.uint8)
        rgb = np.asarray(cv2.cvtColor(cv2.LUT(hsv, table[None]), cv2.COLOR_HSV2RGB), np.uint8)
    # Paper-white and ink-black are rare on real surfaces: the range is narrowed, then moved.
    levels = np.linspace(0, 1, 256) ** np.exp(rng.normal(0, 0.35))
    low, high = rng.uniform(0, 0.25), rng.uniform(0.6, 1.0)
    table = (255 * (low + (high - low) * levels)).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(rgb, table), np.uint8)


def relief(rng: Rng, alpha: Picture) -> np.ndarray:
    """Light on the piece as if it bulged: factors around 1, (height, width) float32."""
    height, width = alpha.shape
    scale = min(1.0, RELIEF_SIDE / max(height, width))
    size = (max(3, round(width * scale)), max(3, round(height * scale)))
    small = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
    depth = cv2.distanceTransform((small > 127).astype("u1"), cv2.DIST_L2, 3)
    radius = max(1.5, float(depth.max()) * rng.uniform(0.3, 1.0))
    height_field = radius * np.sqrt(1 - (1 - np.minimum(depth / radius, 1)) ** 2)
    height_field = cv2.GaussianBlur(height_field.astype(np.float32), (0, 0), 0.08 * radius + 0.7)
    slope_x = cv2.Sobel(height_field, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(height_field, cv2.CV_32F, 0, 1, scale=0.125)
    angle = rng.uniform(0, 2 * np.pi)
    facing = slope_x * np.cos(angle) + slope_y * np.sin(angle)
    light = 1 + rng.uniform(0.2, 0.6) * facing / np.sqrt(1 + slope_x**2 + slope_y**2)
    return cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)


def light_piece(rng: Rng, piece: Piece) -> Piece:
    """The piece with uneven light on it; drawn pieces get it most of the time."""
    height, width = piece.alpha.shape
    factors: np.ndarray | None = None
    if rng.random() < (0.65 if piece.is_drawn else 0.3):
        cells = int(rng.integers(2, 4))
        factors = 1 + rng.uniform(0.1, 0.4) * _smooth_field(rng, height, width, cells)
    if rng.random() < (0.6 if piece.is_drawn else 0.0):
        bulge = relief(rng, piece.alpha)
        factors = bulge if factors is None else factors * bulge
    if factors is None:
        return piece
    return replace(piece, rgb=scale_colours(piece.rgb, np.maximum(factors, 0.15)))


def scale_colours(rgb: Picture, factors: np.ndarray) -> Picture:
    """The picture times factors, (height, width) or (height, width, 3), clipped to 255."""
    if factors.ndim == 2:
        factors = cv2.merge([factors] * 3)
    product = cv2.multiply(rgb, factors.astype(np.float32, copy=False), dtype=cv2.CV_8UC3)
    return np.asarray(product, np.uint8)


def add_texture(rng: Rng, pools: Pools, piece: Piece) -> Piece:
    """A piece with a surface: photographs or noise, multiplied or mixed into its colours."""
    if rng.random() > (0.45 if piece.is_drawn else 0.4):
        return piece
    height, width = piece.alpha.shape
    texture = any_texture(rng, pools, height, width)
    if rng.random() < 0.6:
        mean = max(20.0, float(texture.mean()))
        strength = rng.uniform(0.3, 1.0)
        factors = 1 - strength + (strength / mean) * texture.astype(np.float32)
        return replace(piece, rgb=scale_colours(piece.rgb, factors))
    share = rng.uniform(0.15, 0.7)
    mixed = cv2.addWeighted(piece.rgb, 1 - share, texture, share, 0)
    return replace(piece, rgb=np.asarray(mixed, np.uint8))


def camouflage(rng: Rng, piece: Piece, surroundings: Picture) -> Piece:
    """The piece with its mean colour and contrast moved towards those of its surroundings."""
    inside = piece.alpha > 127
    if not inside.any():
        return piece
    share = rng.uniform(0.4, 0.95)
    own = piece.rgb[inside].mean(axis=0)
    other = surroundings.reshape(-1, 3).mean(axis=0)
    contrast = 1 - share * rng.uniform(0, 0.6)
    shift = own + share * (other - own) - contrast * own
    levels = np.arange(256)[:, None] * contrast + shift
    table = np.ascontiguousarray(levels.clip(0, 255).astype(np.uint8)[None])
    return replace(piece, rgb=np.asarray(cv2.LUT(piece.rgb, table), np.uint8))


def soften(rng: Rng, piece: Piece) -> Piece:
    """The piece out of focus, by up to 2% of its side; its edge is softened with it."""
    sigma = float(rng.uniform(0.4, 0.02 * max(piece.alpha.shape) + 0.6))
    rgb = cv2.GaussianBlur(piece.rgb, (0, 0), sigma)
    alpha = cv2.GaussianBlur(piece.alpha, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    return replace(piece, rgb=np.asarray(rgb), alpha=np.asarray(alpha))
