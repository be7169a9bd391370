"""TinyViT in Keras against PyTorch: same weights, same images, whole tensors."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import pytest
import torch

from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel
from tests.environments import run_python
from tests.tiny import random_images, random_model, random_prompts, tiny_vit_config

pytestmark = pytest.mark.tf
TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
ON_JAX = """
import jax, keras, numpy as np
import segment_anything_transformers as ours
assert keras.backend.backend() == "jax"
model = ours.TFSegmentAnythingModel.from_pretrained({folder!r})
images = np.load({folder!r} + "/images.npy")
np.save({folder!r} + "/made.npy", np.asarray(jax.jit(model.get_image_embeddings)(images)))
"""


def channels_last(images):
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())


@torch.no_grad()
def expected_embeddings(model, images):
    return channels_last(model.get_image_embeddings(images))


@pytest.fixture(scope="module")
def model():
    return random_model(tiny_vit_config(fixed_input_size=False))


@pytest.fixture(scope="module")
def twin(model):
    made = TFSegmentAnythingModel(model.config)
    made.load_state_dict({name: w.numpy() for name, w in model.state_dict().items()})
    return made


@pytest.mark.parametrize("size", [(96, 64), (32, 160), (16, 16)])
def test_embeddings_equal_for_any_size(model, twin, size):
    images = torch.randn(2, 3, *size)
    made = np.asarray(twin.get_image_embeddings(channels_last(images)))
    np.testing.assert_allclose(made, expected_embeddings(model, images), **TOLERANCE)


def test_masks_equal(model, twin):
    images, prompts = random_images(model.config), random_prompts(model.config)
    with torch.no_grad():
        expected = model(images, **prompts)
    arrays = {name: prompt.numpy() for name, prompt in prompts.items()}
    inputs = {"pixel_values": images.numpy(), **arrays}
    _, scores, logits = twin(inputs, multimask_output=True)
    np.testing.assert_allclose(np.asarray(logits), expected.pred_masks.numpy(), **TOLERANCE)
    np.testing.assert_allclose(np.asarray(scores), expected.iou_scores.numpy(), **TOLERANCE)


def test_the_file_is_the_one_that_pytorch_writes(model, twin, tmp_path):
    model.save_pretrained(tmp_path / "torch")
    twin.save_pretrained(tmp_path / "keras")
    written = [(tmp_path / f / "model.safetensors").read_bytes() for f in ("torch", "keras")]
    assert written[0] == written[1]


def test_drop_rates_act_in_training_alone():
    fields = {"encoder_drop_rate": 0.4, "encoder_drop_path_rate": 0.5}
    model = random_model(tiny_vit_config(**fields))
    made = TFSegmentAnythingModel(model.config)
    made.load_state_dict({name: w.numpy() for name, w in model.state_dict().items()})
    images = random_images(model.config)
    expected = expected_embeddings(model, images)
    given = channels_last(images)
    np.testing.assert_allclose(np.asarray(made.get_image_embeddings(given)), expected, **TOLERANCE)
    trained = np.asarray(made.get_image_embeddings(given, training=True))
    assert np.abs(trained - expected).max() > 0.01


@pytest.mark.slow
def test_on_jax_the_embeddings_equal(model, tmp_path):
    images = random_images(model.config)
    model.save_pretrained(tmp_path)
    np.save(tmp_path / "images.npy", channels_last(images))
    run_python(ON_JAX.format(folder=str(tmp_path)), KERAS_BACKEND="jax")
    made = np.load(tmp_path / "made.npy")
    np.testing.assert_allclose(made, expected_embeddings(model, images), **TOLERANCE)
