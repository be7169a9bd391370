"""Pictures of any kind as numpy arrays with the channels first.

Needs numpy and PIL only; tensors of other libraries are converted without importing them.
"""

import os
from typing import Any

import numpy as np
from PIL import Image

from .pictures import GREY, RGB, RGBA, picture_pixels, picture_source, read_picture_file

ImageSource = np.ndarray | Image.Image | str | os.PathLike[str]
"""What an image may be given as: pixels, a picture, or a file."""


def to_numpy(array: Any) -> np.ndarray:
    """Any array, nested list or tensor as a numpy array; a tensor leaves its device and graph."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        # numpy has no bfloat16, and half precision has nothing to gain here
        array = array.float() if array.is_floating_point() else array
    elif hasattr(array, "numpy"):
        array = array.numpy()
    try:
        return np.asarray(array)
    except ValueError as error:
        raise ValueError("Expected rows of equal length, got rows of different ones.") from error


def read_image(
    image: Any, n_channels: int, convert: bool = True, channels_last: bool | None = None
) -> np.ndarray:
    """An image as a (C, H, W) array of uint8, uint16 or float32.

    Grey images are repeated for three channels, colours of 8 bits become grey for one, and
    transparency is dropped; PIL images follow the rule of `pictures`, turned upright and with 8
    bits. An array's channels are looked
    for on its last axis first, a torch tensor's on the first. Booleans become 0 and 255, signed
    integers from 0 to 255 uint8.

    Args:
        image: PIL image, numpy array or tensor, (H, W), (H, W, C) or (C, H, W).
        n_channels: Number of channels C that is wanted.
        convert: If False an image with other channels is refused rather than converted.
        channels_last: Where the channels of an array are; by default they are found by
            `n_channels`.

    Raises:
        TypeError: Not an image, or no numbers.
        ValueError: The image is empty, its shape does not fit, or its integers lie outside the
            range of 8 or 16 bits.
    """
    if isinstance(image, Image.Image):
        pixels, channels_last = picture_pixels(image, n_channels if convert else 0), True
    elif isinstance(image, (str, bytes, dict)) or image is None:
        raise TypeError(
            f"Expected a PIL image, a numpy array or a tensor, got {type(image).__name__}."
        )
    else:
        pixels = to_numpy(image)
    pixels = _with_channels_first(pixels, n_channels, channels_last, hasattr(image, "detach"))
    if pixels.size == 0:
        raise ValueError(f"Expected an image, got no pixels: shape {np.shape(image)}.")
    return _plain_dtype(_with_channels(pixels, n_channels, convert))


def read_source(
    source: Any, n_channels: int, convert: bool = True, channels_last: bool | None = None
) -> np.ndarray:
    """As `read_image`, also of paths, URLs and base64.

    Raises:
        OSError: A file cannot be opened.
        ValueError: A file is no image or damaged, or see `read_image`.
        TypeError: See `read_image`.
    """
    if isinstance(source, str):
        source = picture_source(source)
    if isinstance(source, (str, os.PathLike)):
        source, channels_last = read_picture_file(source, n_channels if convert else 0), True
    return read_image(source, n_channels, convert, channels_last)


def _with_channels_first(
    pixels: np.ndarray, n_channels: int, channels_last: bool | None, prefer_first: bool
) -> np.ndarray:
    if pixels.ndim == 2:
        return pixels[None]
    if pixels.ndim != 3:
        raise ValueError(
            f"Expected an image of shape (H, W), (H, W, C) or (C, H, W), got shape {pixels.shape}."
        )
    if channels_last is None:
        channels_last = _finds_channels_last(pixels.shape, n_channels, prefer_first)
    return np.moveaxis(pixels, -1, 0) if channels_last else pixels


def _finds_channels_last(shape: tuple[int, ...], n_channels: int, prefer_first: bool) -> bool:
    axes = (0, -1) if prefer_first else (-1, 0)
    convertible = {RGB: (GREY, RGBA), GREY: (RGB, RGBA)}.get(n_channels, ())
    for counts in ((n_channels,), convertible):
        for axis in axes:
            if shape[axis] in counts:
                return axis == -1
    raise ValueError(
        f"Expected an image with {n_channels} channels on the first or the last axis, "
        f"got shape {shape}. Of an image with more bands, choose {n_channels}."
    )


def _with_channels(pixels: np.ndarray, n_channels: int, convert: bool) -> np.ndarray:
    found = pixels.shape[0]
    if convert and n_channels == RGB and found == GREY:
        return np.repeat(pixels, RGB, axis=0)
    if convert and n_channels == RGB and found == RGBA:
        return pixels[:RGB]
    if convert and n_channels == GREY and found in (RGB, RGBA) and pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.moveaxis(pixels[:RGB], 0, -1)).convert("L"))[None]
    if found != n_channels:
        raise ValueError(
            f"Expected an image with {n_channels} channels, as many as image_mean has values, "
            f"got {found} from the shape {pixels.shape}. Of an image with more bands, choose "
            f"{n_channels}."
        )
    return pixels


def _plain_dtype(pixels: np.ndarray) -> np.ndarray:
    """The pixels as uint8, uint16 or float32."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if np.issubdtype(pixels.dtype, np.floating):
        return pixels.astype(np.float32, copy=False)
    if not np.issubdtype(pixels.dtype, np.integer):
        raise TypeError(f"Expected an image of numbers, got dtype {pixels.dtype}.")
    return _unsigned(pixels)


def _unsigned(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 255:
        raise ValueError(
            f"Expected pixel values from 0 to 255, got {low} to {high} in {pixels.dtype}. "
            "Convert a 16-bit image to uint16, which means 0 to 65535."
        )
    return pixels.astype(np.uint8)
