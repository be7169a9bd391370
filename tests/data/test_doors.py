"""One reader of pictures: the same files give the same pixels through every door."""

import base64
import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from transformers import pipeline
from transformers.pipelines import MaskGenerationPipeline

from hub_cards.handler import EndpointHandler, RequestError, _read_image
from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingImageProcessor,
    SegmentAnythingMaskGenerationPipeline,
    SegmentAnythingModel,
    load_samples,
)
from segment_anything_transformers.cli import main as command
from segment_anything_transformers.cli.main import main
from segment_anything_transformers.data.annotations import dataset_samples
from segment_anything_transformers.data.files import image_size, read_picture, read_pixels
from segment_anything_transformers.demo.session import DemoSession
from segment_anything_transformers.model.image_encoder import ImageEncoder
from tests.data.picture_files import FILES, HEIGHT, WIDTH, colour, eight_bits, unit
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
    return request.getfixturevalue("predictor").read_image(path)


def by_predictor_picture(path, request):
    with Image.open(path) as picture:
        return request.getfixturevalue("predictor").read_image(picture)


def by_generator(path, request):
    return request.getfixturevalue("generator")._prepared(str(path))[0]


def by_generator_picture(path, request):
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


def by_pipeline(path, request, image=None):
    seen = []
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.setattr(
        MaskGenerationPipeline,
        "preprocess",
        lambda self, image, **kwargs: iter([seen.append(image)][:0]),
    )
    pipeline = object.__new__(SegmentAnythingMaskGenerationPipeline)
    list(pipeline.preprocess(str(path) if image is None else image))
    return np.asarray(seen[0])


def by_pipeline_picture(path, request):
    with Image.open(path) as picture:
        return by_pipeline(path, request, picture)


def by_samples(path, request):
    """What `evaluate` and `finetune` read."""
    return load_samples(path.parents[1])[0].image


def by_rows(path, request):
    """And from a data set."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[3:5] = True
    picture = Image.open(io.BytesIO(path.read_bytes()))  # as `datasets` has them
    return dataset_samples([{"image": picture, "mask": mask}])[0].image


def by_handler(path, request):
    if path.suffix in (".png", ".jpg", ".webp"):
        return np.asarray(_read_image(base64.b64encode(path.read_bytes()).decode()))
    with Image.open(path) as picture:
        return np.asarray(_read_image(picture))


DOORS = {
    name.removeprefix("by_"): door for name, door in list(globals().items()) if name[:3] == "by_"
}


def test_there_are_thirty_files_and_twelve_doors():
    assert len(FILES) >= 30
    assert len(DOORS) == 12


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


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_pixels_that_are_no_numbers_are_refused_at_every_door(tmp_path, request, kind):
    values = np.linspace(0, 1, 600, dtype=kind).reshape(20, 30)
    values[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", values)
    for read in (read_pixels, read_picture):
        with pytest.raises(ValueError, match="pixels that are NaN or infinite"):
            read(tmp_path / "nan.tif")
    for name, door in DOORS.items():
        if name in ("samples", "handler") or (
            kind == np.float64 and ("picture" in name or name == "rows")
        ):
            continue  # see below; PIL opens none of 64 bits
        with pytest.raises(ValueError, match="pixels that are NaN or infinite"):
            door(tmp_path / "nan.tif", request)
    if kind == np.float32:
        with pytest.raises(RequestError, match="pixels that are NaN or infinite"):
            by_handler(tmp_path / "nan.tif", request)


# ------------------------------------------------------- what the model sees, behind all the doors


def by_predict(place, path):
    assert main(["predict", str(path), "--point", "9,9", *place]) == 0


def by_generate(place, path):
    assert main(["generate", str(path), "--points-per-side", "1", *place]) == 0


def by_evaluate(place, path):
    assert main(["evaluate", str(path.parents[1]), "--clicks", "1", *place]) == 0


def by_finetune(place, path):
    options = ["--steps", "1", "--clicks", "0"]
    assert main(["finetune", str(path.parents[1]), *options, *place]) == 0


def in_python(ask):
    def run(place, path):
        ask(SegmentAnythingModel.from_pretrained("tiny").eval(), path)

    return run


def ask_processor(model, path):
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    model(**processor(str(path), return_tensors="pt"), input_points=torch.ones(1, 1, 1, 2))


def ask_pipeline(model, path):
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    kind = SegmentAnythingMaskGenerationPipeline
    made = pipeline("mask-generation", model=model, image_processor=processor, pipeline_class=kind)
    made(str(path), points_per_crop=1)


def ask_page(model, path):
    DemoSession(model, read_picture(path))


def by_endpoint(place, path):
    handler = EndpointHandler("tiny")
    with Image.open(path) as picture:
        assert "error" not in handler(
            {"inputs": picture, "parameters": {"prompts": [{"points": [[9, 9]]}]}}
        )


WAYS_IN = {
    "predict": by_predict,
    "generate": by_generate,
    "evaluate": by_evaluate,
    "finetune": by_finetune,
    "predictor": in_python(lambda model, path: SAMPredictor(model).set_image(path)),
    "generator": in_python(lambda model, path: SAMAutomaticMaskGenerator(model, 1).generate(path)),
    "processor": in_python(ask_processor),
    "pipeline": in_python(ask_pipeline),
    "page": in_python(ask_page),
    "endpoint": by_endpoint,
}


@pytest.fixture(scope="module")
def twelve_bits_turned(tmp_path_factory):
    """A TIFF file of 12 bits that the camera turned: its path in a folder of samples."""
    folder = tmp_path_factory.mktemp("turned")
    for part in ("images", "masks"):
        (folder / part).mkdir()
    values = np.ascontiguousarray(np.rot90(np.round(unit() * 4095).astype(np.uint16)))
    tifffile.imwrite(folder / "images/a.tif", values, extratags=[(0x0112, "H", 1, 6, True)])
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:15, 3:21] = 255
    Image.fromarray(mask).save(folder / "masks/a.png")
    return folder / "images/a.tif"


@pytest.mark.parametrize("way", WAYS_IN)
def test_every_way_in_gives_the_model_the_same(
    model, twelve_bits_turned, tmp_path, monkeypatch, way
):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("tiny")
    SegmentAnythingImageProcessor.from_config(model.config).save_pretrained("tiny")
    seen = []
    forward = ImageEncoder.forward

    def watched(self, pixel_values, *args, **kwargs):
        seen.append(pixel_values.detach().float().clone())
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(ImageEncoder, "forward", watched)
    place = ["--model", "tiny", "--device", "cpu", "--output", str(tmp_path / "out"), "--quiet"]
    WAYS_IN[way](place, twelve_bits_turned)
    processor = SegmentAnythingImageProcessor.from_config(model.config)
    expected = processor(str(twelve_bits_turned), return_tensors="pt")["pixel_values"]
    assert seen
    for pixel_values in seen:
        torch.testing.assert_close(pixel_values, expected, rtol=0, atol=1e-6)
    grey = np.repeat(eight_bits()[..., None], 3, axis=-1)
    of_eight_bits = processor(grey, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(expected, of_eight_bits, rtol=0, atol=1.01 / 57)  # a step of 255
