"""TIFF files that PIL has no mode for, and what the tags of a TIFF file say of its values.

tifffile reads them: several channels of more than 8 bits, more than four bands, floats of 64 bits
and other kinds of numbers.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

GREY, RGB, RGBA = 1, 3, 4

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What PIL and tifffile raise for files that are no pictures, damaged or too large."""

Source = str | os.PathLike[str] | IO[bytes]

ORIENTATION = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # the orientations that swap width and height
SIZE = (256, 257)
_BITS, _MEANING, _NO_DATA = 258, 262, 42113
_WHITE_IS_ZERO = 0
_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class PictureError(ValueError):
    """A picture that can be read, and is not taken."""


# ------------------------------------------------------------------------------------------ tags


def tag_of(picture: Any, number: int) -> Any:
    """The value of a tag of a PIL image or a page of tifffile; None where it has none."""
    if isinstance(picture, Image.Image):
        return getattr(picture, "tag_v2", {}).get(number)
    tag = picture.tags.get(number)
    return None if tag is None else tag.value


def load(picture: Any) -> None:
    """Loads a PIL image's pixels.

    PIL 12.3 maps plain TIFF files into memory, and takes the width of a picture that lies on its
    side for its height: the pixels are mixed up. A file without a name is not mapped.
    """
    name = getattr(picture, "filename", "")
    if name and tag_of(picture, ORIENTATION) in SIDEWAYS:
        picture.filename = ""
        try:
            picture.load()
        finally:
            picture.filename = name
    else:
        picture.load()


def is_deep_colour(picture: Image.Image) -> bool:
    """Whether it is a TIFF file with several channels of more than 8 bits: PIL drops the rest."""
    bits = tag_of(picture, _BITS)
    return isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8


def is_deep_grey(picture: Image.Image) -> bool:
    """Whether it has one channel of more than 8 bits."""
    return picture.mode.startswith("I") or picture.mode == "F"


def is_white_lowest(picture: Any) -> bool:
    """Whether low values are light; of 8 bits PIL has turned them round already."""
    if isinstance(picture, Image.Image) and not is_deep_grey(picture):
        return False
    return bool(tag_of(picture, _MEANING) == _WHITE_IS_ZERO)


def missing_values(picture: Any, values: np.ndarray) -> np.ndarray | None:
    """Where values are the number that a GeoTIFF file has for "no data"; None if it has none.

    Values of 8 bits are what they are.
    """
    try:
        number = float(str(tag_of(picture, _NO_DATA)).strip("\0 "))
    except ValueError:
        return None
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            number = float(values.dtype.type(number))  # the text has more digits
        return np.isnan(values) if np.isnan(number) else values == number
    is_whole = values.dtype.kind in "iu" and values.dtype != np.uint8 and number.is_integer()
    return values == int(number) if is_whole else None


# ----------------------------------------------------------------------------------------- files


def is_tiff(path: Source) -> bool:
    """Whether a file begins as TIFF files do."""
    if isinstance(path, (str, os.PathLike)):
        with Path(path).open("rb") as file:
            return file.read(4) in _STARTS
    path.seek(0)
    start = path.read(4)
    path.seek(0)
    return start in _STARTS


def file_of(picture: Any) -> Any:
    """The file that PIL has opened.

    Raises:
        ValueError: It is closed.
    """
    name = getattr(picture, "filename", None)
    if name:
        return name
    file = getattr(picture, "fp", None) or getattr(picture, "_fp", None)
    if file is None or getattr(file, "closed", True):
        raise PictureError(
            "PIL has kept only 8 of its bits; hand over the file's path, or an array of uint16"
        )
    file.seek(0)
    return file


@contextmanager
def open_tiff(path: Any, name: str = "") -> Iterator[Any]:
    """A TIFF file's first page, as tifffile opens it.

    Args:
        path: The file, or an open one.
        name: What messages begin with.

    Raises:
        ValueError: It is no such file, too large, or damaged.
        ModuleNotFoundError: tifffile is missing, or imagecodecs, in the block too.
    """
    try:
        import tifffile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name}images of several channels with more than 8 bits, or of more than four bands, "
            "need tifffile: `pip install tifffile`",
            name="tifffile",
        ) from error
    faults = (*UNREADABLE, tifffile.TiffFileError)
    try:
        file = tifffile.TiffFile(path)
    except faults as error:
        raise ValueError(f"{name}not an image that can be read ({error})") from error
    with file:
        try:
            page = file.pages[0]
            _check_size(page)
        except PictureError as error:
            raise PictureError(f"{name}{error}") from error
        except faults as error:
            raise ValueError(f"{name}not an image that can be read ({error})") from error
        try:
            yield page
        except faults as error:
            if "imagecodecs" in str(error):
                raise ModuleNotFoundError(
                    f"{name}its compression needs imagecodecs: `pip install imagecodecs`",
                    name="imagecodecs",
                ) from error
            if isinstance(error, tifffile.TiffFileError):
                raise ValueError(f"{name}the image is damaged ({error})") from error
            raise


def _check_size(page: Any) -> None:
    height, width, bands = page.imagelength, page.imagewidth, page.samplesperpixel
    if height * width * bands == 0:
        raise PictureError("the image has no pixels")
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if limit and height * width * bands > limit * RGB:
        raise PictureError(f"the image is too large: {width} x {height}, {bands} bands")


def size_of_page(page: Any) -> tuple[int, int]:
    """Width and height of a page of tifffile as it is looked at."""
    width, height = page.imagewidth, page.imagelength
    return (height, width) if tag_of(page, ORIENTATION) in SIDEWAYS else (width, height)


def bands_of_page(page: Any) -> np.ndarray:
    """All bands (H, W, C) of a page of tifffile, upright, with their own values."""
    values = page.asarray()
    if values.ndim == 2:
        values = values[..., None]
    elif values.ndim == 3:
        values = np.moveaxis(values, page.axes.find("S"), -1)
    else:
        raise PictureError(f"expected an image of two dimensions, got the shape {values.shape}")
    return _turned(values, tag_of(page, ORIENTATION))


def _turned(values: np.ndarray, orientation: Any) -> np.ndarray:
    """Pixels (H, W, C) upright, by TIFF's orientation."""
    if orientation in SIDEWAYS:
        values = values.swapaxes(0, 1)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    return np.flip(values, flips.get(orientation, ()))
