"""An image is encoded once: for predictor and generator, in memory and in files."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from segment_anything_transformers import (
    EncodedImage,
    ImageResizer,
    SAMAutomaticMaskGenerator,
    SAMPredictor,
)
from tests.fake_backend import FakeBackend, small_config
from tests.generator_inputs import LENIENT
from tests.tiny import random_model

H0, W0 = 50, 70
IMAGE = np.random.default_rng(0).integers(0, 256, (H0, W0, 3), np.uint8)
CLICK = {"points": np.array([[30, 20]]), "labels": np.array([1])}
ENDINGS = [".safetensors", ".npz"]


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(name="tiny"))


@pytest.fixture(scope="module")
def predictor(model):
    made = SAMPredictor(model)
    made.set_image(IMAGE)
    return made


def assert_answers_like(other, predictor):
    for found, expected in zip(other(**CLICK), predictor(**CLICK), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_saved_is_set_again_in_one_call(model, predictor, tmp_path, ending):
    path = tmp_path / f"photo{ending}"
    predictor.save_encoded(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    other = SAMPredictor(model)
    other.set_encoded(path)
    assert other.original_size == (H0, W0)
    assert_answers_like(other, predictor)
    other.set_encoded(str(path))
    assert torch.equal(other.image_embeddings, predictor.image_embeddings)


def test_what_numpy_saves_with_the_size_is_set_again(model, predictor, tmp_path):
    path = tmp_path / "by_hand.npz"
    np.savez(
        path,
        image_embeddings=predictor.image_embeddings,
        original_size=predictor.original_size,
    )
    other = SAMPredictor(model)
    other.set_encoded(path)
    assert_answers_like(other, predictor)


def test_embeddings_in_half_precision_are_the_same_from_a_file(tmp_path):
    model = random_model(small_config()).bfloat16()
    predictor, other = SAMPredictor(model), SAMPredictor(model)
    predictor.set_image(IMAGE)
    predictor.save_encoded(tmp_path / "photo.npz")
    other.set_encoded(tmp_path / "photo.npz")
    assert_answers_like(other, predictor)


@pytest.mark.tf
def test_a_model_of_the_other_framework_reads_the_file(model, predictor, tmp_path):
    from segment_anything_transformers import TFSegmentAnythingModel

    twin = TFSegmentAnythingModel(model.config)
    twin.load_state_dict({name: weight.numpy() for name, weight in model.state_dict().items()})
    other = SAMPredictor(twin)
    predictor.save_encoded(tmp_path / "from_torch.safetensors")
    other.set_encoded(tmp_path / "from_torch.safetensors")
    other.save_encoded(tmp_path / "from_keras.safetensors")
    files = [load_file(tmp_path / f"from_{name}.safetensors") for name in ("torch", "keras")]
    np.testing.assert_equal(*files)
    channels_last = predictor.image_embeddings.permute(0, 2, 3, 1)
    np.testing.assert_array_equal(other.image_embeddings, channels_last)
    encoded = other.encoded_image
    other.set_encoded(encoded)
    short = encoded._replace(image_embeddings=encoded.image_embeddings[:, :8])
    with pytest.raises(ValueError, match=r"have the shape \(1, 12, 8, 32\), got \(1, 8, 8, 32\)"):
        other.set_encoded(short)


@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_predictor_and_generator_share_one_encoding(crop_n_layers):
    fake = FakeBackend(small_config(input_size=(128, 96)))
    generator = SAMAutomaticMaskGenerator(
        fake, **{**LENIENT, "output_mode": "uncompressed_rle"}, crop_n_layers=crop_n_layers
    )
    expected = generator.generate(IMAGE)
    fake.encoded.clear()
    encoded = generator.predictor.encode_image(IMAGE)
    assert not generator.predictor.is_image_set
    records = generator.generate(encoded)
    assert len(records) > 3
    assert records == expected
    assert len(fake.encoded) == 1 + 4 * crop_n_layers
    batch = generator.generate_batch([encoded, IMAGE, encoded], images_per_batch=2)
    assert [*batch] == [expected] * 3
    predictor = SAMPredictor(fake)
    predictor.set_encoded(encoded)
    predictor.zoom([10, 10, 40, 30])
    assert records == generator.generate(predictor.encoded_image)


def test_crops_need_pixels(model, predictor, tmp_path):
    predictor.save_encoded(tmp_path / "photo.npz")
    encoded = EncodedImage.load(tmp_path / "photo.npz")
    with pytest.raises(ValueError, match="only the embedding is known"):
        SAMAutomaticMaskGenerator(model, crop_n_layers=1).generate(encoded)
    other = SAMPredictor(model)
    other.set_encoded(encoded)
    with pytest.raises(RuntimeError, match="Only the image's embedding is set"):
        other.zoom([10, 10, 40, 30])


def encoded_as(**fields):
    start = EncodedImage(np.zeros((1, 32, 12, 8), np.float32), ImageResizer((H0, W0), (96, 64)))
    return start._replace(**fields)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (IMAGE, TypeError, "got ndarray. For an image itself there is set_image"),
        (torch.zeros(1, 32, 12, 8), TypeError, "EncodedImage.*got Tensor"),
        (
            encoded_as(image_embeddings=np.zeros((1, 32, 64, 64))),
            ValueError,
            r"have the shape \(1, 32, 12, 8\), got \(1, 32, 64, 64\)",
        ),
        (
            encoded_as(image_embeddings=torch.zeros(2, 32, 12, 8)),
            ValueError,
            r"got \(2, 32, 12, 8\): they are of another model, of several images",
        ),
        (encoded_as(image_embeddings=[1.0]), TypeError, "array of numpy, got list"),
        (
            encoded_as(resizer=ImageResizer((H0, W0), (1024, 1024))),
            ValueError,
            r"input of \(1024, 1024\) pixels, and this model has one of \(96, 64\)",
        ),
        (encoded_as(model_name="sam_vit_b"), ValueError, "by sam_vit_b, and this model is tiny"),
    ],
)
def test_what_was_not_encoded_by_the_model_is_refused(model, given, error, message):
    predictor = SAMPredictor(model)
    with pytest.raises(error, match=message):
        predictor.set_encoded(given)
    assert not predictor.is_image_set


def write(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)


def faulty(path, kind):
    arrays = {"image_embeddings": np.zeros((1, 32, 12, 8), np.float32)}
    if kind == "text":
        path.write_text("no arrays")
    elif kind == "no size":
        write(path, arrays)
    else:
        write(path, {**arrays, "original_size": np.array([50.5, 70.0])})


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "is no file of an encoded image"),
        ("no size", "holds image_embeddings, input_size, and not original_size"),
        ("fractions", r"original_size in .* must be two positive integers, got \[50.5, 70.0\]"),
    ],
)
def test_other_files_are_refused(model, tmp_path, ending, kind, message):
    path = tmp_path / f"other{ending}"
    faulty(path, kind)
    with pytest.raises(ValueError, match=message):
        SAMPredictor(model).set_encoded(path)


def test_paths_are_those_of_a_file(model, predictor, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.npz, got .*photo\.pt"):
        predictor.save_encoded(tmp_path / "photo.pt")
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.npz"):
        predictor.set_encoded(tmp_path / "photo.pt")
    with pytest.raises(FileNotFoundError):
        predictor.set_encoded(tmp_path / "photo.npz")
    with pytest.raises(FileNotFoundError):
        predictor.set_encoded(tmp_path / "photo.safetensors")
    with pytest.raises(RuntimeError, match="No image is set"):
        SAMPredictor(model).save_encoded(tmp_path / "photo.npz")
