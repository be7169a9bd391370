"""Things that are in the picture and are no objects: lines, lettering, streaks of light."""

import cv2
import numpy as np

from examples.scenes.pools import Picture
from examples.scenes.textures import Rng, random_colour

LETTERS = "ABCDEFGHKLMNPRSTUVXYZabcdefghkmnoprstuvxyz0123456789.-&"
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX)


def add_clutter(rng: Rng, image: Picture) -> Picture:
    """The image with a few marks painted over it, (S, S, 3) uint8."""
    marked = np.ascontiguousarray(image).copy()
    for _ in range(int(rng.integers(1, 4))):
        maker = (_lines, _lettering, _streak)[int(rng.choice(3, p=(0.45, 0.3, 0.25)))]
        maker(rng, marked)
    share = rng.uniform(0.4, 1.0)
    return np.asarray(cv2.addWeighted(marked, share, image, 1 - share, 0), np.uint8)


def _colour(rng: Rng) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in random_colour(rng))
    return red, green, blue


def _lines(rng: Rng, image: Picture) -> None:
    size = len(image)
    colour = _colour(rng)
    start, end = rng.uniform(-0.2, 1.2, (2, 2)) * size
    step = rng.normal(0, 0.1, 2) * size
    for number in range(int(rng.integers(1, 9))):
        ends = [tuple(int(v) for v in point + number * step) for point in (start, end)]
        cv2.line(image, ends[0], ends[1], colour, int(rng.integers(1, 3)), cv2.LINE_AA)


def _lettering(rng: Rng, image: Picture) -> None:
    size = len(image)
    word = "".join(rng.choice(list(LETTERS), int(rng.integers(2, 14))))
    scale = float(np.exp(rng.uniform(np.log(0.3), np.log(3.0)))) * size / 512
    origin = (int(rng.uniform(-0.1, 0.8) * size), int(rng.uniform(0.05, 1.0) * size))
    font = FONTS[int(rng.integers(len(FONTS)))]
    thickness = max(1, int(scale * rng.uniform(1, 4)))
    cv2.putText(image, word, origin, font, scale, _colour(rng), thickness, cv2.LINE_AA)


def _streak(rng: Rng, image: Picture) -> None:
    """A soft band of light or shade."""
    size = len(image)
    coarse = np.zeros((64, 64), np.uint8)
    start, end = (tuple(int(v) for v in point) for point in rng.uniform(-16, 80, (2, 2)))
    cv2.line(coarse, start, end, 255, int(rng.integers(2, 20)), cv2.LINE_AA)
    soft = cv2.GaussianBlur(coarse, (0, 0), float(rng.uniform(1.5, 6)))
    weight = cv2.resize(soft, (size, size)).astype(np.float32) * rng.uniform(0.2, 0.8) / 255
    sheet = np.full_like(image, _colour(rng))
    image[:] = cv2.blendLinear(sheet, image, weight, 1 - weight)
