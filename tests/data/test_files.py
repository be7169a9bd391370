"""Pictures and masks in files: bands, faults that are named, and masks that are none."""

import io
import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from hub_cards.handler import RequestError, _read_image
from segment_anything_transformers import SAMPredictor, SegmentAnythingImageProcessor
from segment_anything_transformers.data.annotations import dataset_samples
from segment_anything_transformers.data.files import (
    image_size,
    numbers_of_picture,
    read_mask,
    read_numbers,
    read_picture,
    read_pixels,
)
from tests.data.picture_files import HEIGHT, WIDTH, colour
from tests.fake_backend import small_config
from tests.tiny import random_model


@pytest.fixture(scope="module")
def predictor():
    return SAMPredictor(random_model(small_config()))


def many_bands(path, kind=np.uint16):
    """Bands 4, 3 and 2 are red, green and blue; band 6 outshines them."""
    bands = np.zeros((HEIGHT, WIDTH, 6), kind)
    bands[..., [3, 2, 1]] = colour().astype(kind) * 8
    bands[..., 5] = 60_000
    tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    return path


def test_bands_are_chosen_before_the_stretch(tmp_path):
    path = many_bands(tmp_path / "scene.tif")
    assert image_size(path) == (WIDTH, HEIGHT)
    assert np.abs(read_pixels(path, (4, 3, 2)).astype(int) - colour()).max() <= 1
    every = read_pixels(path)
    assert every.shape == (HEIGHT, WIDTH, 6)
    assert (every[..., 5] == 255).all()
    np.testing.assert_array_equal(np.asarray(read_picture(path, [4])), read_pixels(path, [4, 4, 4]))
    with pytest.raises(ValueError, match=r"scene\.tif: the image has 6 bands; choose three"):
        read_picture(path)
    for bands in ((4, 3, 7), (0, 1, 2), ()):
        with pytest.raises(ValueError, match=r"scene\.tif: the image has the bands 1 to 6"):
            read_pixels(path, bands)


def test_a_model_of_many_channels_takes_all_bands_and_one_of_three_says_what_to_do(
    tmp_path, predictor
):
    path = many_bands(tmp_path / "scene.tif")
    many = SAMPredictor(random_model(small_config(in_channels=6)))
    np.testing.assert_array_equal(many.read_image(read_pixels(path)), read_pixels(path))
    processor = SegmentAnythingImageProcessor.from_config(many.config, do_resize=False)
    assert processor(str(path), return_tensors="np")["pixel_values"].shape == (1, 6, 96, 64)
    with pytest.raises(ValueError, match=r"got shape \(20, 30, 6\)\. Of an image with more"):
        predictor.read_image(read_pixels(path))


def test_the_command_chooses_bands(run_on_data, tmp_path):
    many_bands(tmp_path / "scene.tif")
    Image.fromarray(colour()).save("colour.png")
    assert run_on_data("predict scene.tif --point 20,9 --bands 4,3,2 -o a")[0] == 0
    assert run_on_data("predict colour.png --point 20,9 -o b")[0] == 0
    one = np.asarray(Image.open("a/scene_mask_00.png"))
    np.testing.assert_array_equal(one, np.asarray(Image.open("b/colour_mask_00.png")))
    code, _, error = run_on_data("predict scene.tif --point 20,9 -o c")
    assert code == 2
    assert "scene.tif: Expected an image with 3 channels" in error
    with pytest.raises(SystemExit):
        run_on_data("predict scene.tif --point 20,9 --bands 0,1,2")


def test_files_that_cannot_be_opened_say_why(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "text.png").write_text("no image")
    bomb = Image.new("1", (20_000, 10_000))
    bomb.save(tmp_path / "bomb.png")
    for name, kind, message in (
        ("pipe.png", OSError, "neither a file nor a folder, but a pipe"),
        ("folder.png", OSError, "a folder, not a file"),
        ("loop.png", OSError, "Too many levels of symbolic links"),
        ("none.png", FileNotFoundError, "no such file"),
        ("x" * 300 + ".png", OSError, "File name too long"),
        ("text.png", ValueError, "not an image that can be read"),
        ("bomb.png", ValueError, "the image is too large: at most 178956970 pixels"),
    ):
        for read in (image_size, read_picture, read_pixels, read_mask, read_numbers):
            with pytest.raises(kind, match=f"^{tmp_path / name}: {message}"):
                read(tmp_path / name)
    Image.new("L", (3, 3)).save(tmp_path / "locked.png")

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(PermissionError, match=r"locked\.png: Permission denied"):
        read_picture(tmp_path / "locked.png")


# ----------------------------------------------------------------------------------------- masks


def disc(soft, size=200):
    """A disc (size, size) uint8, white, with hard or soft edges."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    distance = size / 3 - np.hypot(x, y)
    shade = np.clip(distance / 3 + 0.5, 0, 1) if soft else distance > 0
    return np.round(shade * 255).astype(np.uint8)


def test_soft_edges_are_no_objects(tmp_path):
    Image.fromarray(disc(soft=True)).save(tmp_path / "soft.png")
    with pytest.raises(ValueError, match="numbers whose pixels are strewn, as in soft edges"):
        dataset_samples([{"image": disc(True), "mask": Image.open(tmp_path / "soft.png")}])[0]
    Image.fromarray(disc(soft=False)).save(tmp_path / "lossy.jpg", quality=60)
    with pytest.raises(ValueError, match="the mask is a JPEG"):
        read_numbers(tmp_path / "lossy.jpg")
    decoded = np.asarray(Image.open(tmp_path / "lossy.jpg"))
    with pytest.raises(ValueError, match="strewn"):
        dataset_samples([{"image": disc(True), "mask": decoded}])[0]


def test_small_and_many_objects_are_no_soft_edges():
    ids = np.zeros((100, 100), np.uint16)
    for index in range(400):  # pixels of their own
        ids[index // 20 * 5, index % 20 * 5] = index + 1
    image = np.zeros((100, 100, 3), np.uint8)
    assert len(dataset_samples([{"image": image, "mask": ids}])[0].masks) == 400
    for index in range(400):  # and two that touch at a corner
        ids[index // 20 * 5 + 1, index % 20 * 5 + 1] = index + 1
    assert len(dataset_samples([{"image": image, "mask": ids}])[0].masks) == 400


def test_a_shape_in_the_transparency_is_the_mask(tmp_path):
    shape = disc(soft=False)
    for colours in (np.full((200, 200, 3), 255), np.zeros((200, 200, 3))):
        Image.fromarray(np.dstack([colours.astype(np.uint8), shape])).save(tmp_path / "shape.png")
        np.testing.assert_array_equal(read_numbers(tmp_path / "shape.png"), shape)
        np.testing.assert_array_equal(read_mask(tmp_path / "shape.png"), shape > 0)
    opaque = np.dstack([shape, np.full_like(shape, 255)])
    np.testing.assert_array_equal(numbers_of_picture(Image.fromarray(opaque, "LA")), shape)
    ids = (shape > 0) * np.repeat(np.arange(1, 3, dtype=np.uint8), 100)[None]
    np.testing.assert_array_equal(numbers_of_picture(Image.fromarray(np.dstack([ids, shape]))), ids)
    other = np.dstack([disc(False)[::-1] // 2 + 7, np.roll(shape, 40, 0)])
    other[:50, :50, 0] = 99
    with pytest.raises(ValueError, match="both colours and transparency"):
        numbers_of_picture(Image.fromarray(other, "LA"))


def test_a_mask_of_several_pages_is_refused(tmp_path):
    pages = [Image.fromarray(np.roll(disc(False), 9 * n)) for n in range(3)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ValueError, match="the mask has 3 pages; save each as a file of its own"):
        read_numbers(tmp_path / "pages.tif")


def test_a_rough_mask_may_be_of_ones_and_is_not_empty(tmp_path):
    Image.fromarray((disc(False) > 0).astype(np.uint8)).save(tmp_path / "ones.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "ones.png"), disc(False) > 0)
    Image.new("L", (9, 9), 90).save(tmp_path / "dark.png")
    with pytest.raises(ValueError, match=r"dark\.png: the mask is empty; nothing in it is lighter"):
        read_mask(tmp_path / "dark.png")


def test_a_mask_of_too_many_numbers_is_refused_before_it_takes_memory():
    ids = np.arange(480 * 320, dtype=np.int32).reshape(480, 320) % 59_306 + 1
    image = np.zeros((480, 320, 3), np.uint8)
    with pytest.raises(ValueError, match=r"strewn|need 8\.5 GiB, at most 4 are taken"):
        dataset_samples([{"image": image, "mask": ids}])[0]
    ids = np.repeat(np.arange(240 * 160, dtype=np.int32).reshape(240, 160), 2, 0).repeat(2, 1) + 1
    with pytest.raises(ValueError, match=r"38400 objects in 320 x 480 pixels need 5\.5 GiB"):
        dataset_samples([{"image": image, "mask": ids}])[0]


def test_a_damaged_picture_in_a_request_is_an_answer():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)).save(
        buffer, "PNG"
    )
    truncated = Image.open(io.BytesIO(buffer.getvalue()[:9000]))
    with pytest.raises(RequestError, match="damaged"):
        _read_image(truncated)
