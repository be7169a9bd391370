"""Parts painted onto objects of a view: one click has several right answers, as on photographs.

The pieces of a scene are wholes. A window painted onto a door, and a handle onto the window, make
the whole, a part and a part of the part, and all three masks are known.
"""

import cv2
import numpy as np

from examples.scenes.appearance import blend, scale_colours
from examples.scenes.pools import Picture
from examples.scenes.shapes import placed_shape
from examples.scenes.textures import Rng, gradient, noise, plain, stripes

MIN_SIDE = 24
"""Pixels of the longer side of whatever gets a part."""
SMALLEST_SHARE, LARGEST_SHARE = 0.08, 0.7
"""Of the area that a part is on."""
SURFACES = (plain, gradient, noise, stripes)


def nested_masks(
    rng: Rng, image: Picture, whole: np.ndarray, levels: int = 3
) -> tuple[Picture, list[np.ndarray]]:
    """Paints a part onto an object, and maybe a part onto the part.

    Args:
        rng: Source of randomness.
        image: (H, W, 3) uint8; it is not changed.
        whole: (H, W) boolean mask of the object.
        levels: Largest number of masks.

    Returns:
        The painted image, and the masks, each within the next; the last is the whole. One mask
        alone where the object is too small, or where the part missed it.
    """
    masks = [whole]
    while len(masks) < levels:
        painted = _paint_part(rng, image, masks[0])
        if painted is None:
            break
        image, part = painted
        masks.insert(0, part)
    return image, masks


def _paint_part(rng: Rng, image: Picture, mask: np.ndarray) -> tuple[Picture, np.ndarray] | None:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if max(width, height) < MIN_SIDE:
        return None
    side = round(max(width, height) * rng.uniform(0.25, 0.9))
    box = np.s_[top : top + height, left : left + width]
    window, shape = placed_shape(rng, height, width, side)
    opacity = np.where(mask[box][window], shape, 0).astype(np.uint8)
    part = np.zeros_like(mask)
    part[box][window] = opacity > 127
    if not SMALLEST_SHARE < part.sum() / mask.sum() < LARGEST_SHARE:
        return None
    image = image.copy()
    below = image[box][window]
    below[:] = blend(below, _surface(rng, below), opacity)
    return image, part


def _surface(rng: Rng, below: Picture) -> Picture:
    """A new surface in the light that falls on the old one, which may shine through."""
    make = SURFACES[int(rng.integers(len(SURFACES)))]
    surface = make(rng, *below.shape[:2])
    grey = below.mean(2, dtype=np.float32)
    surface = scale_colours(surface, ((grey + 8) / (grey.mean() + 8)).clip(0.4, 1.6))
    share = rng.uniform(0.5, 1.0)
    return np.asarray(cv2.addWeighted(surface, share, below, 1 - share, 0), np.uint8)
