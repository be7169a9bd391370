"""Pictures and masks in files.

The one reader of image files for everybody: command, page, annotations. What a picture's pixels
are, `model.pictures` says. A file that cannot be read is an OSError or a ValueError whose message
begins with its path.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..model.pictures import (
    GREY,
    RGB,
    PictureError,
    opened,
    picture_pixels,
    picture_size,
    read_picture_file,
    upright,
)
from ..model.tiff_pages import load

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MASK_ENDINGS = (".bmp", ".gif", ".png", ".tif", ".tiff")  # without loss: the values are numbers

_MID_GREY = 127


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as it is looked at, from its header alone.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no image, or is too large.
    """
    return picture_size(path)


def read_pixels(path: str | Path, bands: Sequence[int] | None = None) -> np.ndarray:
    """The picture in a file, upright, as a model sees it: (H, W, 3) uint8.

    Args:
        path: The file.
        bands: Bands to be read in this order, counted from 1; C of them make (H, W, C), one makes
            grey. By default RGB, or all bands of a picture with more than four.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no image, is damaged or too large, has NaN, or lacks a band.
    """
    pixels = read_picture_file(path, RGB, bands)
    return _colours(pixels)


def read_picture(path: str | Path, bands: Sequence[int] | None = None) -> Image.Image:
    """The RGB picture in a file, turned upright as its camera noted; see `read_pixels`.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no image, is damaged or too large, has NaN, lacks a band, or is not to be
            seen as three colours.
    """
    pixels = read_pixels(path, bands)
    if pixels.shape[-1] != RGB:
        raise ValueError(
            f"{path}: the image has {pixels.shape[-1]} bands; choose three of them, or one "
            "(--bands 1,2,3)"
        )
    return Image.fromarray(pixels)


def read_mask(path: str | Path) -> np.ndarray:
    """The boolean mask (H, W) in a picture: True where it is lighter than mid-grey.

    Where the colours say nothing, it is the shape in the picture's transparency. A picture of
    zeros and ones is a mask as well.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is no image, is damaged, or there is nothing light in it.
    """
    with opened(path) as picture:
        if not isinstance(picture, Image.Image):
            raise PictureError("expected a mask of one channel")
        values = _shape_in(upright(picture))
        grey = picture_pixels(picture, GREY) if values is None else values
    mask = grey > (0 if grey.max(initial=0) == 1 else _MID_GREY)
    if not mask.any():
        raise ValueError(f"{path}: the mask is empty; nothing in it is lighter than mid-grey")
    return mask


def read_numbers(path: str | Path) -> np.ndarray:
    """The numbers (H, W) in a picture of masks: indices of a palette, or grey values.

    Raises:
        OSError: The file cannot be opened.
        ValueError: It is no image, is damaged, or see `numbers_of_picture`.
    """
    with opened(path) as picture:
        if not isinstance(picture, Image.Image):
            raise PictureError("expected a mask of one channel")
        load(picture)
        try:
            return numbers_of_picture(picture)
        except ValueError as error:
            fault = error
    raise fault


def pixels_of_picture(picture: Image.Image) -> np.ndarray:
    """A picture of PIL as a model sees it, upright: (H, W, 3) uint8."""
    return _colours(picture_pixels(picture))


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Pixels (H, W, C) of pixels (H, W), (H, W, 1) or (H, W, C)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    return np.repeat(pixels, RGB, axis=-1) if pixels.shape[-1] == GREY else pixels


def numbers_of_picture(picture: Image.Image) -> np.ndarray:
    """The numbers (H, W) in a picture of masks: indices of a palette, or grey values.

    Where a picture has the same colour everywhere and its transparency differs, that is the mask.

    Raises:
        ValueError: It is coloured, has several pages, was saved as JPEG, which changes numbers, or
            its transparency and its colours say different things.
    """
    if picture.format in ("JPEG", "MPO"):
        raise ValueError("the mask is a JPEG, whose values are not what was saved; save it as PNG")
    pages = getattr(picture, "n_frames", 1)
    if pages > 1:
        raise ValueError(
            f"the mask has {pages} pages; save each as a file of its own, in a folder with the "
            "image's name"
        )
    picture = upright(picture)
    in_alpha = _shape_in(picture)
    if in_alpha is not None:
        return in_alpha
    values = np.asarray(picture)
    if values.ndim == 3:
        colours = values[..., : 1 if picture.mode == "LA" else 3]
        if (colours != colours[..., :1]).any():
            raise ValueError(
                "the mask is coloured; expected one channel, with 0 for no object and another "
                "number for each object"
            )
        values = colours[..., 0]
    return values


def _shape_in(picture: Image.Image) -> np.ndarray | None:
    """The transparency (H, W) uint8, where it is what holds the mask.

    Raises:
        ValueError: Colours and transparency differ, and it cannot be known which is meant.
    """
    if picture.mode not in ("RGBA", "LA"):
        return None
    values = np.asarray(picture)
    colours, alpha = values[..., :-1], values[..., -1]
    if (alpha == alpha[0, 0]).all():
        return None
    shown = colours[alpha > 0]
    if (shown == shown[0]).all() and not (colours[alpha == 0] != shown[0]).any():
        return alpha
    if not colours[alpha == 0].any() and (alpha[colours.any(axis=-1)] > 0).all():
        return alpha if (shown == shown[0]).all() else None
    raise PictureError(
        "the mask has both colours and transparency, which say different things; save it without "
        "transparency"
    )
