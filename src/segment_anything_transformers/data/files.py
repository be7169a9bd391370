"""Pictures and masks in files, and files that are either complete or not there.

The one reader of image files for everybody: command, page, annotations. A file that cannot be read
is an OSError or a ValueError whose message begins with its path.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..prediction.visualization import to_rgb

IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MASK_ENDINGS = (".bmp", ".gif", ".png", ".tif", ".tiff")  # without loss: the values are numbers

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What PIL raises for files that are no pictures, damaged or too large."""

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap width and height


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The picture in a file, of which the header alone has been read."""
    try:
        picture = Image.open(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: not an image that can be read") from error
    with picture:
        try:
            yield picture
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{path}: the image is damaged ({reason})") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image as it is looked at, from its header alone.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image.
    """
    with _opened(path) as picture:
        sideways = picture.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
        return (picture.height, picture.width) if sideways else picture.size


def read_picture(path: str | Path) -> Image.Image:
    """The RGB picture in a file, turned upright as its camera noted.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or is damaged.
    """
    with _opened(path) as picture:
        return to_rgb(ImageOps.exif_transpose(picture))


def read_pixels(path: str | Path) -> np.ndarray:
    """The picture in a file, upright: (H, W, 3) uint8, or (H, W) uint16 with more than 8 bits.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or is damaged.
    """
    with _opened(path) as picture:
        return pixels_of_picture(picture)


def read_mask(path: str | Path) -> np.ndarray:
    """The boolean mask (H, W) in a picture: True where it is lighter than mid-grey.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or is damaged.
    """
    return np.asarray(read_picture(path).convert("L")) > 127


def read_numbers(path: str | Path) -> np.ndarray:
    """The numbers (H, W) in a picture of masks: indices of a palette, or grey values.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, is damaged, or is coloured.
    """
    with _opened(path) as picture:
        picture.load()
        opened = picture.copy()
    return numbers_of_picture(opened)


def pixels_of_picture(picture: Image.Image) -> np.ndarray:
    """A picture of PIL, upright: (H, W, 3) uint8, or (H, W) uint16 with more than 8 bits."""
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):
        return np.asarray(upright).astype(np.uint16)
    return np.asarray(to_rgb(upright))


def numbers_of_picture(picture: Image.Image) -> np.ndarray:
    """The numbers (H, W) in a picture of masks: indices of a palette, or grey values.

    Raises:
        ValueError: It is coloured.
    """
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


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that is either complete or not there, whenever the work is cut off."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
