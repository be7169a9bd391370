"""TIFF files as microscopes and satellites write them: kinds of numbers, no data, damage."""

import io
import struct
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from segment_anything_transformers.data.files import (
    image_size,
    read_mask,
    read_numbers,
    read_pixels,
)
from segment_anything_transformers.model.pictures import picture_pixels, read_picture_file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

NO_DATA = 42113
HEIGHT, WIDTH = 20, 30


def ramp():
    """(H, W), from 0 to 1."""
    return np.tile(np.linspace(0, 1, WIDTH), (HEIGHT, 1))


def expected():
    return np.round(ramp() * 255).astype(int)


def off(pixels, bands=3):
    """The largest difference from what is expected in every band."""
    assert pixels.shape == (HEIGHT, WIDTH, bands)
    return np.abs(pixels.astype(int) - expected()[..., None]).max()


@pytest.mark.parametrize(
    "kind", ["int8", "int16", "int64", "uint32", "uint64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("bands", [1, 3, 6])
def test_every_kind_of_number(tmp_path, kind, bands):
    values = (ramp() * 120 - (kind[0] != "u") * 10).astype(kind)
    values = values if bands == 1 else np.dstack([values] * bands)
    photometric = "rgb" if bands == 3 else "minisblack"
    layout = None if bands == 1 else "contig"
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, planarconfig=layout)
    pixels = read_pixels(tmp_path / "a.tif")
    if kind == "int8" and bands == 1:  # PIL has these as 8 bits
        return
    assert off(pixels, max(3, bands)) <= 3  # of 120 whole numbers
    assert image_size(tmp_path / "a.tif") == (WIDTH, HEIGHT)


def test_complex_numbers_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", ramp().astype(np.complex64))
    with pytest.raises(ValueError, match=r"a\.tif: the pixels are no real numbers but complex64"):
        read_pixels(tmp_path / "a.tif")


@pytest.mark.parametrize("factor", [1, 257])
def test_low_values_may_be_light(tmp_path, factor):
    values = np.round((1 - ramp()) * 255).astype(np.uint16 if factor > 1 else np.uint8) * factor
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert off(read_pixels(tmp_path / "a.tif")) <= 1
    assert off(read_pixels(tmp_path / "a.tif", bands=[1, 1, 1])) <= 1
    with Image.open(tmp_path / "a.tif") as picture:
        grey = picture_pixels(picture, 1)
    assert off(np.dstack([grey] * 3)) <= 1


@pytest.mark.parametrize(
    ("kind", "scale", "number", "text"),
    [
        ("float32", 1.0, -9999.0, "-9999"),
        ("float64", 1.0, -9999.0, "-9999.0"),
        ("float32", 1.0, np.finfo(np.float32).min, "-3.4028234663852886e+38"),
        ("float32", 1.0, np.nan, "nan"),
        ("uint16", 4095, 65535, "65535"),
        ("int16", 4095, -32768, "-32768 "),
        ("uint32", 4095, 2**32 - 1, "4294967295"),
    ],
)
@pytest.mark.parametrize("bands", [1, 6])
def test_no_data_is_black_and_has_no_part_in_the_range(tmp_path, kind, scale, number, text, bands):
    values = (ramp() * scale).astype(kind)
    values[3:7, 4:9] = number
    values = values if bands == 1 else np.dstack([values] * bands)
    options = {} if bands == 1 else {"photometric": "minisblack", "planarconfig": "contig"}
    tags = [(NO_DATA, "s", 0, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=tags, **options)
    pixels = read_pixels(tmp_path / "a.tif")
    assert not pixels[3:7, 4:9].any()
    pixels[3:7, 4:9] = expected()[3:7, 4:9, None]
    assert off(pixels, max(3, bands)) <= 1


@pytest.mark.parametrize("text", ["none", "", "-9999", "7.5", "nan", "1e400"])
def test_no_data_that_is_nowhere_changes_nothing(tmp_path, text):
    values = np.round(ramp() * 4095).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=[(NO_DATA, "s", 0, text, True)])
    assert off(read_pixels(tmp_path / "a.tif")) <= 1
    eight = np.round(ramp() * 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", eight, extratags=[(NO_DATA, "s", 0, "255", True)])
    assert off(read_pixels(tmp_path / "a.tif")) == 0


def test_numbers_too_far_apart_are_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[1e308, -1e308], [0.0, 1.0]]))
    with pytest.raises(ValueError, match="NaN or infinite"):
        read_pixels(tmp_path / "a.tif")


def test_pixels_that_lie_on_their_side_are_not_mixed_up(tmp_path):
    """PIL 12.3 maps such files into memory with the sides exchanged."""
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 7
    tags = [(0x0112, "H", 1, 6, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=tags)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif")[..., 0], np.rot90(values, 3))
    np.testing.assert_array_equal(read_numbers(tmp_path / "a.tif"), np.rot90(values, 3))
    tifffile.imwrite(tmp_path / "a.tif", (values > 3).astype(np.uint8), extratags=tags)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), np.rot90(values > 3, 3))
    with Image.open(tmp_path / "a.tif") as picture:
        picture_pixels(picture)
        assert picture.filename


def six_bands(**options):
    """The content of a file of six bands of 16 bits."""
    file = io.BytesIO()
    bands = np.dstack([np.round(ramp() * 4095).astype(np.uint16)] * 6)
    tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="contig", **options)
    return bytearray(file.getvalue())


def with_tag(content, number, value):
    """The content with another value of a tag of 16 or 32 bits."""
    at = content.index(struct.pack("<H", number) + b"\4\0") if number < 258 else None
    at = content.index(struct.pack("<H", number) + b"\3\0") if at is None else at
    content[at + 8 : at + 12] = struct.pack("<I", value)
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"II*\0", "not an image that can be read"),
        (b"II*\0\x08\0\0\0\0\0", "the image has no pixels"),
        (six_bands()[:60], "not an image that can be read"),
        (six_bands()[:-900], "the image is damaged"),
        (with_tag(six_bands(), 259, 60000), "the image is damaged"),
        (
            with_tag(six_bands(), 256, 10**7),
            "the image is too large: 10000000 x 20, 6 bands",
        ),
    ],
)
def test_damaged_files_are_refused_in_words(tmp_path, content, message):
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(ValueError, match=rf"a\.tif: ({message})"):
        read_pixels(tmp_path / "a.tif")


def test_a_header_that_claims_more_than_there_is_room_for_is_refused(tmp_path):
    content = with_tag(with_tag(six_bands(), 256, 10**6), 257, 10**6)
    (tmp_path / "a.tif").write_bytes(content)
    for read in (read_pixels, image_size, read_mask):
        with pytest.raises(ValueError, match=r"a\.tif: .*too large: 1000000 x 1000000, 6 bands"):
            read(tmp_path / "a.tif")


def test_any_bytes_are_read_or_refused_in_words(tmp_path):
    rng = np.random.default_rng(0)
    sound = six_bands()
    for _ in range(150):
        content = bytearray(sound)
        for _ in range(3):
            content[rng.integers(0, 400)] = rng.integers(0, 256)
        (tmp_path / "a.tif").write_bytes(content)
        try:
            pixels = read_pixels(tmp_path / "a.tif")
            width, height = image_size(tmp_path / "a.tif")
        except (ValueError, ModuleNotFoundError) as error:
            assert str(error).startswith(str(tmp_path))  # noqa: PT017
        else:
            assert pixels.shape[:2] == (height, width)


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    def decode(self):
        raise KeyError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    (tmp_path / "a.tif").write_bytes(six_bands())
    monkeypatch.setattr(tifffile.TiffPage, "asarray", decode)
    with pytest.raises(
        ModuleNotFoundError, match=r"a\.tif: its compression needs imagecodecs: `pip"
    ):
        read_picture_file(tmp_path / "a.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ModuleNotFoundError, match=r"a\.tif: .* need tifffile: `pip install tiff"):
        read_picture_file(tmp_path / "a.tif")
