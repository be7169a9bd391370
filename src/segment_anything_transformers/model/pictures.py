"""Pictures in files, and PIL images, as pixels: one rule of what a model sees of them.

- 8 bits a channel: the values as they are. Grey, palettes, CMYK and other modes become RGB, and
  transparency is dropped.
- More bits (12, 16 or 32, whole numbers or floats): the darkest value of the picture becomes 0 and
  the brightest 255, over all channels together; a picture of one value is black. NaN and infinity
  are refused.
- A camera's note on how it was held (EXIF) turns the picture upright.
- Of several pages the first is taken.
- Pictures of more than four bands are read from TIFF files (which needs tifffile): all of them, or
  those that are chosen.

Arrays are no pictures: their values are taken by their dtype, see `image_arrays`.
"""

import base64
import os
import reprlib
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .tiff_pages import (
    GREY,
    ORIENTATION,
    RGB,
    RGBA,
    SIDEWAYS,
    SIZE,
    UNREADABLE,
    PictureError,
    Source,
    bands_of_page,
    file_of,
    is_deep_colour,
    is_deep_grey,
    is_tiff,
    is_white_lowest,
    load,
    missing_values,
    open_tiff,
    size_of_page,
    tag_of,
)

__all__ = ["GREY", "RGB", "RGBA", "UNREADABLE", "PictureError"]

_PIL_MODES = {GREY: "L", RGB: "RGB"}
"""The mode that a PIL image is brought to for a number of channels."""

_ROWS_AT_ONCE = 256


# ---------------------------------------------------------------------------------------- pixels


def picture_pixels(picture: Image.Image, n_channels: int = RGB) -> np.ndarray:
    """A PIL image's pixels, upright, as the rule above has them.

    Args:
        picture: A PIL image of any mode.
        n_channels: Channels that are wanted: 1 or 3. Any other number leaves the mode as it is.

    Returns:
        (H, W, C) or (H, W), uint8. With more than 8 bits and one channel always (H, W).

    Raises:
        ValueError: A value is NaN or infinite.
        OSError: The image's file is damaged.
    """
    if is_deep_colour(picture):
        with open_tiff(file_of(picture)) as page:
            return _finished(page, _without_alpha(bands_of_page(page), n_channels))
    if is_deep_grey(picture):
        return _finished(picture, np.asarray(upright(picture)))
    picture = upright(picture)
    mode = _PIL_MODES.get(n_channels, picture.mode)
    if picture.mode == mode:
        return np.asarray(picture)
    if picture.mode in ("P", "PA", "RGBa", "La") or "transparency" in picture.info:
        # PIL warns when it has to forget a palette's transparency
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    return np.asarray(picture.convert(mode))


def upright(picture: Image.Image) -> Image.Image:
    """The picture as it is looked at, turned as its camera noted; loaded."""
    load(picture)
    orientation = picture.getexif().get(ORIENTATION, 1)
    return picture if orientation == 1 else ImageOps.exif_transpose(picture)


def _finished(source: Any, values: np.ndarray) -> np.ndarray:
    """Values of a picture as uint8, with what its tags say of them.

    Args:
        source: A PIL image or a page of tifffile.
        values: Some of its bands, upright.
    """
    missing = missing_values(source, values)
    pixels = stretched(values, missing)
    if is_white_lowest(source):
        pixels = 255 - pixels
    if missing is not None:
        pixels[missing] = 0
    return pixels


def stretched(values: np.ndarray, missing: np.ndarray | None = None) -> np.ndarray:
    """Numbers of more than 8 bits as uint8: the darkest becomes 0, the brightest 255.

    Args:
        values: Of any shape; uint8 and booleans are only made uint8.
        missing: True where there is no value: there it is not looked at, and becomes anything.

    Raises:
        ValueError: A value is NaN or infinite, or no real number.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "buif":
        raise PictureError(f"the pixels are no real numbers but {values.dtype}")
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    seen = values if missing is None else values[~missing]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    if not np.isfinite([low, high, high - low]).all():
        raise PictureError(
            "the image has pixels that are NaN or infinite; give them a number first"
        )
    pixels = np.zeros(values.shape, np.uint8)
    if low == high:
        return pixels
    for start in range(0, len(values), _ROWS_AT_ONCE):  # float64 of all takes 8 times the memory
        rows = slice(start, start + _ROWS_AT_ONCE)
        scaled = (values[rows].astype(np.float64) - low) * (255 / (high - low))
        if missing is not None:
            scaled[missing[rows]] = 0
        pixels[rows] = np.round(scaled, out=scaled)
    return pixels


# ----------------------------------------------------------------------------------------- files


def read_picture_file(
    path: Source, n_channels: int = RGB, bands: Sequence[int] | None = None
) -> np.ndarray:
    """The pixels of a picture's file, upright, as the rule above has them.

    Args:
        path: The file, or an open one.
        n_channels: As in `picture_pixels`.
        bands: The bands to be read, in this order, counted from 1. By default what PIL makes of
            the file, or all bands where there are more than four.

    Returns:
        (H, W, C) or (H, W), uint8.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be opened; the message begins with the path, and so do the next ones.
        ValueError: It is no image, is damaged or too large, has NaN, or lacks a band.
        ModuleNotFoundError: It needs tifffile.
    """
    with opened(path) as picture:
        if isinstance(picture, Image.Image) and bands is None:
            return picture_pixels(picture, n_channels)
        values = _bands_of(picture)
        if bands is None:
            return _finished(picture, _without_alpha(values, n_channels))
        return _finished(picture, _chosen(values, bands))


def picture_size(path: Source) -> tuple[int, int]:
    """Width and height of a picture's file as it is looked at, from its header alone.

    Raises what `read_picture_file` does.
    """
    with opened(path) as picture:
        if not isinstance(picture, Image.Image):
            return size_of_page(picture)
        # Some versions of PIL turn the size of a TIFF file already, but not its tags.
        width, height = (
            tag_of(picture, tag) or side for tag, side in zip(SIZE, picture.size, strict=True)
        )
        sideways = picture.getexif().get(ORIENTATION) in SIDEWAYS
        return (height, width) if sideways else (width, height)


def picture_source(text: str) -> Any:
    """What a path, a URL or the base64 of an image means: the path, or a PIL image.

    Raises:
        ValueError: It is none of these.
    """
    if text.startswith(("http://", "https://")):
        return _image_in(_fetched(text), text)
    if os.path.exists(text):
        return text
    try:
        content = base64.b64decode(text.partition(",")[2] if text[:5] == "data:" else text)
        return _image_in(content, "base64")
    except ValueError as error:
        shown = reprlib.repr(text)
        raise ValueError(
            f"Expected a valid path to an image file, a URL or base64, got {shown}."
        ) from error


def _fetched(url: str) -> bytes:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Images at URLs need httpx.", name="httpx") from error
    return httpx.get(url, follow_redirects=True).content


def _image_in(content: bytes, name: str) -> Image.Image:
    try:
        return Image.open(BytesIO(content))
    except UNREADABLE as error:
        raise ValueError(f"{name}: not an image that can be read") from error


@contextmanager
def opened(path: Source) -> Iterator[Any]:
    """The picture in a file, of which the header alone has been read.

    Yields:
        A PIL image, or what tifffile opened where PIL has no mode for it.

    Raises what `read_picture_file` does, in the block too.
    """
    name = f"{path}: " if isinstance(path, (str, os.PathLike)) else ""
    check_is_file(path)
    with _opened(path, name) as picture:
        try:
            yield picture
        except ModuleNotFoundError:
            raise
        except Image.DecompressionBombError as error:
            raise ValueError(f"{name}{_too_large(error)}") from error
        except PictureError as error:
            raise ValueError(f"{name}{error}") from error
        except UNREADABLE as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}the image is damaged ({reason})") from error


def check_is_file(path: Source) -> None:
    """Refuses what is no file that can be read, and says why; a pipe would be waited for.

    Raises:
        OSError: The message begins with the path.
        ValueError: The path has a zero byte.
    """
    if not isinstance(path, (str, os.PathLike)):
        return
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            Path(path).open("rb").close()
            return
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except OSError as error:
        raise type(error)(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from error
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: a folder, not a file")
    raise OSError(f"{path}: neither a file nor a folder, but a pipe, a socket or a device")


@contextmanager
def _opened(path: Source, name: str) -> Iterator[Any]:
    try:
        picture = Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name}{_too_large(error)}") from error
    except UNREADABLE as error:
        if not is_tiff(path):
            raise ValueError(f"{name}not an image that can be read") from error
        with open_tiff(path, name) as opened_tiff:
            yield opened_tiff
        return
    with picture:
        yield picture


def _too_large(error: Exception) -> str:
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    return f"the image is too large: at most {limit} pixels are read ({error})"


def _bands_of(picture: Any) -> np.ndarray:
    """All bands (H, W, C) of a PIL image or a page of tifffile, upright, with their own values."""
    if not isinstance(picture, Image.Image):
        return bands_of_page(picture)
    if is_deep_colour(picture):
        with open_tiff(file_of(picture)) as page:
            return bands_of_page(page)
    picture = upright(picture)
    values = np.asarray(picture.convert("RGB") if picture.mode == "P" else picture)
    return values[..., None] if values.ndim == 2 else values


def _without_alpha(values: np.ndarray, n_channels: int) -> np.ndarray:
    """Of four bands the first three where three are wanted, before their range is looked at."""
    return values[..., :RGB] if n_channels == RGB and values.shape[-1] == RGBA else values


def _chosen(values: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    count = values.shape[-1]
    if not bands or any(not 1 <= band <= count for band in bands):
        asked = ", ".join(map(str, bands))
        raise PictureError(
            f"the image has the bands 1 to {count}, asked for were {asked or 'none'}"
        )
    return values[..., [band - 1 for band in bands]]
