"""What a camera does to a whole picture: tone, light falling off, blur, noise, compression."""

from functools import lru_cache

import cv2
import numpy as np

from examples.scenes.pools import Picture
from examples.scenes.textures import Rng

NOISE_SIDE = 1024


def adjust_tone(rng: Rng, image: Picture, strength: float) -> Picture:
    """The image with another gamma, contrast, brightness and colour cast.

    Args:
        rng: Source of randomness.
        image: Colours, (S, S, 3) uint8.
        strength: Standard deviation of the changes, about 0.05 (slight) to 0.3 (strong).
    """
    levels = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 1.5 * strength))
    gains = np.exp(rng.normal(0, strength) + rng.normal(0, 0.3 * strength, 3))
    pivot = 0.45
    contrast = np.exp(rng.normal(0, strength))
    toned = (pivot + contrast * (levels - pivot)) * gains
    table = np.ascontiguousarray((255 * toned).clip(0, 255).astype(np.uint8)[None])
    return np.asarray(cv2.LUT(np.ascontiguousarray(image), table), np.uint8)


def fast_blur(image: Picture, sigma: float) -> Picture:
    """A Gaussian blur; a wide one is done at a lower resolution, where it costs less."""
    if sigma < 4:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.uint8)
    height, width = image.shape[:2]
    small = cv2.resize(image, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
    blurred = cv2.GaussianBlur(small, (0, 0), sigma / 4)
    return np.asarray(cv2.resize(blurred, (width, height), interpolation=cv2.INTER_LINEAR))


def degrade(rng: Rng, image: Picture) -> Picture:
    """The image as a camera of some quality would have kept it, (S, S, 3) uint8."""
    if rng.random() < 0.35:
        image = _uneven_light(rng, image)
    dark = rng.random() < 0.06
    if dark:
        image = np.asarray(cv2.convertScaleAbs(image, alpha=rng.uniform(0.25, 0.6)), np.uint8)
    if rng.random() < 0.6:
        image = adjust_tone(rng, image, 0.12)
    image = _lose_sharpness(rng, image)
    if dark or rng.random() < 0.5:
        image = add_noise(rng, image, 2.5 if dark else 1.0)
    if rng.random() < 0.04:
        image = _grey(image)
    if rng.random() < 0.4:
        image = compress(image, int(rng.integers(25, 95)))
    return np.ascontiguousarray(image)


def _grey(image: Picture) -> Picture:
    return np.asarray(cv2.merge([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)] * 3), np.uint8)


def _uneven_light(rng: Rng, image: Picture) -> Picture:
    """Vignetting, or light that comes from one side with a tint."""
    knots = 5
    steps = np.linspace(-1, 1, knots)
    if rng.random() < 0.5:
        radius_squared = steps[:, None] ** 2 + steps[None] ** 2
        grid = (1.05 - rng.uniform(0.08, 0.32) * radius_squared)[..., None] * np.ones(3)
    else:
        slope = rng.normal(0, 0.25, 2)
        lean = slope[0] * steps[:, None] + slope[1] * steps[None]
        grid = 1 + lean[..., None] * (1 + rng.normal(0, 0.2, 3))
    size = image.shape[1::-1]
    factors = cv2.resize(grid.astype(np.float32), size, interpolation=cv2.INTER_CUBIC)
    lit = cv2.multiply(image, np.maximum(factors, 0.1), dtype=cv2.CV_8UC3)
    return np.asarray(lit, np.uint8)


def _lose_sharpness(rng: Rng, image: Picture) -> Picture:
    """Nothing, a slight blur, a shaken camera, or a picture enlarged from a smaller one."""
    draw = rng.random()
    if draw < 0.25:
        return fast_blur(image, float(rng.uniform(0.4, 1.3)))
    if draw < 0.31:
        return _shake(rng, image)
    if draw < 0.45:
        height, width = image.shape[:2]
        factor = rng.uniform(1.2, 2.5)
        small = (int(width / factor), int(height / factor))
        reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        method = cv2.INTER_CUBIC if rng.random() < 0.5 else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(reduced, (width, height), interpolation=method), np.uint8)
    return image


def _shake(rng: Rng, image: Picture) -> Picture:
    length = int(rng.integers(3, 9))
    kernel = np.zeros((9, 9), np.float32)
    angle = rng.uniform(0, np.pi)
    offset = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    start, end = (tuple(round(v) for v in point) for point in (4 - offset, 4 + offset))
    cv2.line(kernel, start, end, 1.0, 1)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.uint8)


@lru_cache(maxsize=1)
def _noise_sheet() -> Picture:
    """Noise of standard deviation 32 around 128, made once: (1024, 1024, 3) uint8."""
    values = np.random.default_rng(0).normal(128, 32, (NOISE_SIDE, NOISE_SIDE, 3))
    return values.clip(0, 255).astype(np.uint8)


def add_noise(rng: Rng, image: Picture, strength: float) -> Picture:
    """The image with sensor noise: fine, or coarse as a cheap sensor smears it."""
    height, width = image.shape[:2]
    coarse = 2 if rng.random() < 0.3 else 1
    rows, columns = (min(length // coarse, NOISE_SIDE) for length in (height, width))
    top, left = rng.integers(NOISE_SIDE - rows + 1), rng.integers(NOISE_SIDE - columns + 1)
    sheet = _noise_sheet()[top : top + rows, left : left + columns]
    if sheet.shape[:2] != (height, width):
        sheet = np.asarray(cv2.resize(sheet, (width, height)), np.uint8)
    gain = strength * float(rng.uniform(1.5, 12)) / 32
    return np.asarray(cv2.addWeighted(image, 1.0, sheet, gain, -128 * gain), np.uint8)


def compress(image: Picture, quality: int) -> Picture:
    """The image after JPEG compression.

    Args:
        image: Colours, (S, S, 3) uint8.
        quality: As JPEG encoders count it, 1 to 100.
    """
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
