"""The same picture in some thirty files of different kinds, and what every reader makes of them.

The picture is 30 pixels wide and 20 high; it grows lighter to the right (as a square) and a little
darker downwards, so that a turn, a flip or a clipped range changes it.
"""

import numpy as np
import tifffile
from PIL import Image

WIDTH, HEIGHT = 30, 20


def unit():
    """The picture (H, W), from 0 to 1, both of which occur."""
    x = np.linspace(0, 1, WIDTH)[None] ** 2
    y = np.linspace(1, 0.4, HEIGHT)[:, None]
    return x * y


def eight_bits():
    """The picture (H, W) as uint8."""
    return np.round(unit() * 255).astype(np.uint8)


def colour():
    """The picture in colours (H, W, 3) uint8: red as it is, green half of it, blue the rest."""
    grey = eight_bits()
    return np.dstack([grey, grey // 2, 255 - grey])


def _grey(path):
    Image.fromarray(eight_bits()).save(path)


def _colour(path, **options):
    Image.fromarray(colour()).save(path, **options)


def _lossy(path):
    _colour(path, quality=100, subsampling=0)


def _mode(mode):
    return lambda path: Image.fromarray(colour()).convert(mode).save(path)


def _one_bit(path):
    Image.fromarray(eight_bits() > 127).save(path)


def _transparent(path):
    Image.fromarray(np.dstack([colour(), eight_bits()])).save(path)


def _palette(path):
    """Indices of a palette that is the grey values turned round."""
    picture = Image.fromarray(255 - eight_bits(), "L").convert("P")
    picture.putpalette([255 - value for value in range(256) for _ in range(3)])
    picture.save(path, transparency=0)


def _turned(orientation):
    """Saved as a camera that was held otherwise saves it."""
    inverse = {3: 2, 6: 1, 8: 3}  # quarters to the left

    def save(path):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = np.rot90(colour(), inverse[orientation])
        lossless = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif, **lossless)

    return save


def _plain(orientation, scale):
    """Turned, and not compressed: PIL maps such a file into memory."""

    def save(path):
        pixels = np.round(unit() * 255 * scale).astype(np.uint16 if scale > 1 else np.uint8)
        pixels = np.ascontiguousarray(np.rot90(pixels, {6: 1, 8: 3}[orientation]))
        tifffile.imwrite(path, pixels, extratags=[(0x0112, "H", 1, orientation, True)])

    return save


def _deep(kind, scale, offset=0.0):
    def save(path):
        values = unit() * scale + offset
        values = np.round(values) if np.dtype(kind).kind in "ui" else values
        if path.suffix == ".png":
            Image.fromarray(values.astype(kind)).save(path)
        else:
            tifffile.imwrite(path, values.astype(kind))

    return save


def _bands(kind, scale, count, planes="contig", **options):
    """As many bands of which the first three are colours, and the rest is the brightest."""

    def save(path):
        bands = np.dstack([colour() / 255] + [np.ones((HEIGHT, WIDTH))] * (count - 3)) * scale
        bands = np.round(bands).astype(kind) if np.dtype(kind).kind in "ui" else bands.astype(kind)
        bands = bands if planes == "contig" else np.moveaxis(bands, -1, 0)
        tifffile.imwrite(path, bands, photometric="rgb", planarconfig=planes, **options)

    return save


def _pages(path):
    first, second = Image.fromarray(colour()), Image.new("RGB", (WIDTH, HEIGHT))
    first.save(path, save_all=True, append_images=[second])


# A file's name: who makes it, whether in colours, and the mean of all readers. The tolerance is
# that of a loss in saving.
FILES = {
    "grey.png": (_grey, False, 60.5),
    "grey.bmp": (_grey, False, 60.5),
    "grey.tif": (_grey, False, 60.5),
    "grey.gif": (_grey, False, 60.5),
    "colour.png": (_colour, True, 95.1),
    "colour.tif": (_colour, True, 95.1),
    "colour.bmp": (_colour, True, 95.1),
    "colour.jpg": (_lossy, True, 95.1),
    "colour.webp": (lambda path: _colour(path, lossless=True), True, 95.1),
    "cmyk.tif": (_mode("CMYK"), True, 95.1),
    "transparent.png": (_transparent, True, 95.1),
    "transparent.tif": (_transparent, True, 95.1),
    "palette.png": (_palette, False, 60.5),
    "turned3.jpg": (_turned(3), True, 95.1),
    "turned6.png": (_turned(6), True, 95.1),
    "turned8.png": (_turned(8), True, 95.1),
    "turned6.tif": (_turned(6), True, 95.1),
    "pages.tif": (_pages, True, 95.1),
    "twelve.png": (_deep(np.uint16, 4095), False, 60.5),
    "twelve.tif": (_deep(np.uint16, 4095, 100), False, 60.5),
    "sixteen.png": (_deep(np.uint16, 65535), False, 60.5),
    "sixteen.tif": (_deep(np.uint16, 65535), False, 60.5),
    "twelve_turned.tif": (_plain(6, 16), False, 60.5),
    "grey_turned.tif": (_plain(8, 1), False, 60.5),
    "light_is_low.tif": (
        lambda path: tifffile.imwrite(
            path, np.round((1 - unit()) * 4095).astype(np.uint16), photometric="miniswhite"
        ),
        False,
        60.5,
    ),
    "big_endian.tif": (
        lambda path: tifffile.imwrite(
            path, np.round(unit() * 4095).astype(np.uint16), byteorder=">"
        ),
        False,
        60.5,
    ),
    "int32.tif": (_deep(np.int32, 1_000_000, -200_000), False, 60.5),
    "floats.tif": (_deep(np.float32, 1.0), False, 60.5),
    "floats255.tif": (_deep(np.float32, 255.0), False, 60.5),
    "negative.tif": (_deep(np.float32, 3.0, -2.0), False, 60.5),
    "sixteen_rgb.tif": (_bands(np.uint16, 4095, 3), True, 95.1),
    "sixteen_planes.tif": (_bands(np.uint16, 4095, 3, "separate"), True, 95.1),
    "sixteen_rgbn.tif": (_bands(np.uint16, 2047, 4, extrasamples=["unassalpha"]), True, 95.1),
}
