"""Pictures of masks and prompts, with numpy and PIL alone."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from ..model.pictures import picture_pixels

FOREGROUND_COLOUR = "#16a34a"
BACKGROUND_COLOUR = "#dc2626"
BOX_COLOUR = "#facc15"

_GOLDEN_ANGLE = np.pi * (3 - np.sqrt(5))
_LINE_SHARE = 1 / 12  # a line's width over an object's side, at most: wider ones would hide it
_SUPERSAMPLING = 4  # PIL draws jagged edges; shrinking a larger drawing smooths them


def mask_colours(count: int) -> np.ndarray:
    """Colours (count, 3) uint8 that tell neighbours apart: as light and as vivid as each other.

    The first ones are the same for every count. The hues advance by the golden angle, at two
    lightnesses in turn: a dozen are distinct, and one never resembles the next.

    Source of the colour space: Oklab, B. Ottosson, 2020.
    """
    index = np.arange(count)
    hue = 4.4 + index * _GOLDEN_ANGLE  # the first is a blue, which few objects have
    lightness = np.where(index % 2 == 0, 0.68, 0.80)
    return _oklab_to_srgb(lightness, 0.17 * np.cos(hue), 0.17 * np.sin(hue))


def _oklab_to_srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Colours of the Oklab space, (n,) each, as (n, 3) uint8."""
    lab = np.stack([lightness, a, b], axis=-1)
    to_cones = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_linear_rgb.T, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * srgb).astype(np.uint8)


def to_rgb(image: Image.Image | np.ndarray) -> Image.Image:
    """The image as an RGB picture of 8 bits a channel, whatever it was before.

    Args:
        image: A PIL image of any mode, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of
            uint8. Transparency is dropped. PIL images are turned upright, and those of 16 or 32
            bits stretched to their range, as the model sees them.

    Raises:
        TypeError: The array is not uint8.
        ValueError: The array has another shape.
    """
    array = picture_pixels(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.dtype != np.uint8:
        raise TypeError(f"Expected an image of uint8, got {array.dtype}. Scale it to 0 to 255.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (3, 4)):
        raise ValueError(
            f"Expected an image of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), "
            f"got {array.shape}."
        )
    return Image.fromarray(array).convert("RGB")


def draw_masks(
    image: Image.Image | np.ndarray,
    masks: Sequence[np.ndarray] | np.ndarray,
    colours: Sequence[Any] | np.ndarray | None = None,
    opacity: float = 0.5,
    outline_width: int | None = None,
) -> Image.Image:
    """The image under coloured masks with outlines; where masks overlap, the smaller one shows.

    Args:
        image: What `to_rgb` takes.
        masks: K boolean arrays of the image's size, (K, H, W) or a sequence of (H, W).
        colours: K colours, each a name such as "gold" or "#ffd700", or red, green and blue from 0
            to 255. By default those of `mask_colours`.
        opacity: How much of the mask's colour covers the image, from 0 to 1.
        outline_width: Pixels; 0 draws none. By default it grows with the image, and is less around
            small masks.

    Returns:
        An RGB picture of the image's size. The image itself is unchanged.

    Raises:
        TypeError: A mask is not boolean, or see `to_rgb`.
        ValueError: A mask has not the image's size, the number of colours is not that of the
            masks, `opacity` or `outline_width` is out of range, or see `to_rgb`.
    """
    picture = to_rgb(image)
    size_hw = (picture.height, picture.width)
    rgb = mask_colours(len(masks)) if colours is None else _checked_colours(colours, len(masks))
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie from 0 to 1, got {opacity}.")
    if outline_width is not None and outline_width < 0:
        raise ValueError(f"outline_width must be 0 or more pixels, got {outline_width}.")
    pixels = np.array(picture)
    paint, alpha = pixels.copy(), np.zeros(pixels.shape[:2], np.float32)
    areas = np.array([np.count_nonzero(_checked_mask(mask, size_hw)) for mask in masks])
    for index in np.argsort(-areas, kind="stable"):
        mask = _checked_mask(masks[int(index)], size_hw)
        paint[mask], alpha[mask] = rgb[index], opacity
        width = outline_width
        if width is None:
            width = _line_width(picture, areas[index] ** 0.5)
        alpha[_inner_outline(mask, width)] = 1
    mixed = paint.astype(np.float32)
    mixed -= pixels
    mixed *= alpha[..., None]
    mixed += pixels
    return Image.fromarray(np.round(mixed, out=mixed).astype(np.uint8))


def _checked_mask(mask: Any, size_hw: tuple[int, int]) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != np.bool_:
        raise TypeError(f"Expected boolean masks, got {mask.dtype}. Threshold the logits first.")
    if mask.shape != size_hw:
        raise ValueError(f"Expected masks of the image's size {size_hw}, got {mask.shape}.")
    return mask


def _checked_colours(colours: Sequence[Any] | np.ndarray, count: int) -> list[Any]:
    if len(colours) != count:
        raise ValueError(f"Expected {count} colours, one for each mask, got {len(colours)}.")
    return [ImageColor.getrgb(c)[:3] if isinstance(c, str) else c for c in colours]


def _line_width(picture: Image.Image, object_side: float, share: float = 1 / 400) -> int:
    """A width of lines that looks the same in large and small pictures, but for small objects."""
    return max(1, round(min(max(picture.size) * share, object_side * _LINE_SHARE)))


def _inner_outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The mask's pixels that lie within `width` of its edge; the picture's edge is none."""
    height_px, width_px = mask.shape
    padded = np.pad(mask, width, mode="edge")
    # A square around each pixel lies inside the mask: first along the rows, then along the columns.
    steps = range(2 * width + 1)
    along_rows = padded[:, :width_px].copy()
    for at in steps:
        along_rows &= padded[:, at : at + width_px]
    inside = along_rows[:height_px].copy()
    for at in steps:
        inside &= along_rows[at : at + height_px]
    return mask & ~inside


def draw_prompts(
    image: Image.Image | np.ndarray,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
) -> Image.Image:
    """The image with the prompts on it: plus for foreground, minus for background, boxes in yellow.

    Args:
        image: What `to_rgb` takes.
        points: (M1, 2), x and y in pixels of the image.
        labels: (M1,): 1 foreground, 0 background; others are not drawn. By default all 1.
        boxes: (M2, 4), left, top, right, bottom in pixels of the image.

    Returns:
        An RGB picture of the image's size. The image itself is unchanged.

    Raises:
        ValueError: Points, labels or boxes have the wrong shape, or see `to_rgb`.
    """
    picture = to_rgb(image).copy()
    boxes_xyxy = _checked_rows("boxes", boxes, 4)
    points_xy = _checked_rows("points", points, 2)
    kinds = np.ones(len(points_xy), int) if labels is None else np.asarray(labels)
    if kinds.shape != (len(points_xy),):
        raise ValueError(f"Expected {len(points_xy)} labels, one a point, got {kinds.shape}.")
    for box in boxes_xyxy:
        _draw_box(picture, box)
    radius = marker_radius(picture)
    for point, kind in zip(points_xy, kinds, strict=True):
        if kind in (0, 1):
            marker = _marker(radius, bool(kind))
            left, top = (round(float(at)) - marker.width // 2 for at in point)
            picture.paste(marker, (left, top), marker)
    return picture


def marker_radius(image: Image.Image) -> int:
    """Radius in pixels of the discs that `draw_prompts` draws for points."""
    return max(5, round(max(image.size) / 60))


def _checked_rows(name: str, rows: Any, length: int) -> np.ndarray:
    array = np.zeros((0, length)) if rows is None else np.asarray(rows, np.float64)
    if array.ndim != 2 or array.shape[1] != length:
        raise ValueError(f"Expected {name} of shape (M, {length}), got {array.shape}.")
    return array


def _draw_box(picture: Image.Image, box_xyxy: np.ndarray) -> None:
    """A yellow frame with a dark rim, which is seen on any background."""
    left, top, right, bottom = (round(float(edge)) for edge in box_xyxy)
    width = _line_width(picture, min(right - left, bottom - top), share=1 / 200)
    rim = 1
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - rim, top - rim, right + rim, bottom + rim), None, "black", width + 2)
    draw.rectangle((left, top, right, bottom), None, BOX_COLOUR, width)


@lru_cache(maxsize=8)
def _marker(radius: int, is_foreground: bool) -> Image.Image:
    """A disc with a white rim and a white sign, transparent around it."""
    big = radius * _SUPERSAMPLING
    rim, arm, stroke = big // 5, round(big * 0.45), max(1, big // 10)
    # White where nothing is drawn too, or shrinking would darken the rim.
    marker = Image.new("RGBA", (2 * big + 1, 2 * big + 1), (255, 255, 255, 0))
    draw = ImageDraw.Draw(marker)
    draw.ellipse((0, 0, 2 * big, 2 * big), "white")
    colour = FOREGROUND_COLOUR if is_foreground else BACKGROUND_COLOUR
    draw.ellipse((rim, rim, 2 * big - rim, 2 * big - rim), colour)
    draw.rectangle((big - arm, big - stroke, big + arm, big + stroke), "white")
    if is_foreground:
        draw.rectangle((big - stroke, big - arm, big + stroke, big + arm), "white")
    return marker.resize((2 * radius + 1, 2 * radius + 1), Image.Resampling.LANCZOS)
