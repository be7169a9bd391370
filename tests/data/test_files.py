"""One reader of pictures: the same thirty files through every door."""

import base64
import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from PIL import Image
from transformers.pipelines import MaskGenerationPipeline

from hub_cards.handler import RequestError, _read_image
from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingImageProcessor,
    SegmentAnythingMaskGenerationPipeline,
    load_samples,
)
from segment_anything_transformers.cli import main as command
from segment_anything_transformers.data.annotations import dataset_samples
from segment_anything_transformers.data.files import (
    image_size,
    numbers_of_picture,
    read_mask,
    read_numbers,
    read_picture,
    read_pixels,
)
from tests.data.picture_files import FILES, HEIGHT, WIDTH, colour, eight_bits
from tests.fake_backend import small_config
from tests.tiny import random_model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder as `load_samples` takes it, with all the files; file names differ without ending."""
    folder = tmp_path_factory.mktemp("files")
    for name, (save, _, _) in FILES.items():
        for part in ("images", "masks"):
            (folder / name / part).mkdir(parents=True)
        save(folder / name / "images" / name)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[2:9, 3:11] = 255
        stem = name.partition(".")[0]
        Image.fromarray(mask).save(folder / name / "masks" / f"{stem}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture(scope="module")
def predictor(model):
    return SAMPredictor(model)


@pytest.fixture(scope="module")
def generator(model):
    return SAMAutomaticMaskGenerator(model, points_per_side=2)


def by_command(path, request):
    return np.asarray(command._read_image(str(path), None)[0])


def by_predictor(path, request):
    with Image.open(path) as picture:
        return request.getfixturevalue("predictor").read_image(picture)


def by_generator(path, request):
    with Image.open(path) as picture:
        return request.getfixturevalue("generator")._prepared(picture)[0]


def by_processor(path, request, image=None):
    plain = SegmentAnythingImageProcessor(
        do_resize=False, do_pad=False, do_rescale=False, do_normalize=False
    )
    [pixels] = plain(str(path) if image is None else image, return_tensors=None)["pixel_values"]
    values = np.moveaxis(np.asarray(pixels), 0, -1)
    np.testing.assert_array_equal(values, np.round(values))
    return values.astype(np.uint8)


def by_processor_picture(path, request):
    with Image.open(path) as picture:
        return by_processor(path, request, picture)


def by_pipeline(path, request):
    seen = []
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setattr(
        MaskGenerationPipeline,
        "preprocess",
        lambda self, image, **kwargs: iter([seen.append(image)][:0]),
    )
    pipeline = object.__new__(SegmentAnythingMaskGenerationPipeline)
    list(pipeline.preprocess(str(path)))
    return np.asarray(seen[0])


def by_samples(path, request):
    """What `evaluate` and `finetune` read."""
    return load_samples(path.parents[1])[0].image


def by_rows(path, request):
    """And from a data set."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:5] = True
    picture = Image.open(io.BytesIO(path.read_bytes()))  # as `datasets` has them
    return dataset_samples([{"image": picture, "mask": mask}])[0].image


def by_page(path, request):
    app = pytest.importorskip("segment_anything_transformers.demo.app")
    opened = []
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setattr(app, "_seen", lambda visit: ())
    app._open(SimpleNamespace(open=opened.append), str(path))
    return np.asarray(opened[0])


def by_handler(path, request):
    if path.suffix in (".png", ".jpg", ".webp"):
        return np.asarray(_read_image(base64.b64encode(path.read_bytes()).decode()))
    with Image.open(path) as picture:
        return np.asarray(_read_image(picture))


DOORS = {
    name.removeprefix("by_"): door for name, door in list(globals().items()) if name[:3] == "by_"
}


def test_there_are_thirty_files_and_ten_doors():
    assert len(FILES) == 30
    assert len(DOORS) == 10


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", FILES)
def test_every_door_reads_every_file_alike(files, request, name, door):
    _, is_colour, mean = FILES[name]
    path = files / name / "images" / name
    pixels = DOORS[door](path, request)
    expected = colour() if is_colour else np.repeat(eight_bits()[..., None], 3, axis=-1)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert pixels.dtype == np.uint8
    assert image_size(path) == (WIDTH, HEIGHT)
    assert abs(pixels.mean() - mean) < 0.6
    loss = 12 if name.endswith(".jpg") else 1
    assert np.abs(pixels.astype(int) - expected).max() <= loss


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


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pixels_that_are_no_numbers_are_refused_at_every_door(tmp_path, request, kind):
    values = np.linspace(0, 1, 600, dtype=kind).reshape(20, 30)
    values[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values)
    for read in (read_pixels, read_picture):
        with pytest.raises(ValueError, match="pixels that are NaN or infinite"):
            read(tmp_path / "nan.tif")
    if kind == np.float32:  # PIL opens no others
        for door in (by_predictor, by_generator, by_processor, by_pipeline, by_rows):
            with pytest.raises(ValueError, match="pixels that are NaN or infinite"):
                door(tmp_path / "nan.tif", request)


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
