"""True masks of every form, and the simulated interaction: Keras against PyTorch."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from segment_anything_transformers.model import loss_segment_anything as torch_loss
from segment_anything_transformers.model import loss_tf_segment_anything as keras_loss
from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model

pytestmark = pytest.mark.tf
N, P, H, W = 2, 3, 12, 16
INPUT_HW = (96, 64)


@pytest.fixture
def masks():
    masks = np.random.default_rng(0).random((N, P, H, W)) > 0.6
    masks[1, 2] = False
    return masks


@pytest.fixture
def same_chance(monkeypatch):
    """Makes both frameworks draw the same numbers, from the start at every call."""

    def start():
        ours, theirs = np.random.default_rng(5), np.random.default_rng(5)
        for name in ("random", "standard_normal"):
            helper = {"random": "_uniform", "standard_normal": "_normal"}[name]
            monkeypatch.setattr(
                keras_loss,
                helper,
                lambda shape, seed, name=name: np.float32(getattr(ours, name)(shape)),
            )
            monkeypatch.setattr(
                torch_loss,
                helper,
                lambda shape, device, name=name: torch.tensor(
                    getattr(theirs, name)(shape), dtype=torch.float32
                ),
            )

    return start


FORMS = {
    "boolean": (lambda masks: masks, None),
    "0 and 255": (lambda masks: masks.astype(np.uint8) * 255, None),
    "negative": (lambda masks: np.where(masks, 0.75, -1.0), None),
    "ignore value": (lambda masks: masks.astype(np.uint8) + 1, 2),
    "ids": (lambda masks: masks.argmax(axis=1) - 1, 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_are_read_alike(masks, form):
    make, ignore_value = FORMS[form]
    labels = make(masks)
    truth, known = keras_loss.read_labels(labels, P, ignore_value)
    expected = torch_loss.read_labels(torch.from_numpy(labels), P, ignore_value)
    np.testing.assert_array_equal(truth, expected[0])
    np.testing.assert_array_equal(known, expected[1])


@pytest.mark.parametrize(
    "labels",
    [
        np.full((N, P, H, W), 7),
        np.full((N, P, H, W), np.nan),
        np.zeros((N, P + 1, H, W)),
        np.zeros((N + 1, P, H, W)),
        np.tile([0, 1, 255, 0], (N, P, H, 4)),
        np.full((N, H, W), 255),
        np.full((N, H, W), 0.5),
        np.full((N, H, W), np.nan),
    ],
    ids=["7", "NaN", "prompt sets", "images", "1 and 255", "id 255", "id 0.5", "id NaN"],
)
def test_other_labels_are_refused_in_the_same_words(labels):
    messages = []
    for module, arrays in ((torch_loss, torch.from_numpy), (keras_loss, tf.constant)):
        with pytest.raises(ValueError, match=r"^labels must") as caught:
            module.resize_labels(arrays(labels), arrays(np.zeros((N, P, 4, H, W), np.float32)))
        messages.append(str(caught.value).replace(", of a size that is known,", ","))
    assert messages[0] == messages[1]


def test_first_prompts_are_alike(masks, same_chance):
    same_chance()
    known = np.ones_like(masks)
    ours = keras_loss.first_prompts(masks, known, INPUT_HW)
    theirs = torch_loss.first_prompts(torch.from_numpy(masks), torch.from_numpy(known), INPUT_HW)
    theirs = (*theirs[:2], theirs[2][:, :, None])  # Keras' decode wants the axis of boxes
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("clicks", [0, 2])
def test_interaction_and_gradients_are_alike(tmp_path, same_chance, clicks):
    theirs = random_model(small_config())
    theirs.save_pretrained(tmp_path)
    ours = TFSegmentAnythingModel.from_pretrained(tmp_path)
    pixels = random_images(theirs.config)
    labels = np.zeros((2, 2, 96, 64), np.float32)
    labels[:, 0, 10:50, 5:40] = 1
    labels[0, 1, 40:80, 20:] = 1
    labels[1, 1] = -1  # nothing is known of this one
    same_chance()
    decode = partial(theirs.decode, theirs.get_image_embeddings(pixels))
    expected = torch_loss.interactive_loss(decode, torch.from_numpy(labels), INPUT_HW, 0.0, clicks)
    expected.backward()
    images = pixels.permute(0, 2, 3, 1).numpy()
    with tf.GradientTape() as tape:
        decode = partial(ours.decode, ours.get_image_embeddings(images))
        loss = keras_loss.interactive_loss(decode, labels, INPUT_HW, 0.0, clicks)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-4)
    weight = ours.mask_decoder.iou_token.weight
    gradient = tape.gradient(loss, weight)
    reference = theirs.mask_decoder.iou_token.weight.grad
    np.testing.assert_allclose(gradient, reference, rtol=0, atol=1e-3 * reference.abs().max())


@pytest.mark.slow
def test_interaction_is_traced_into_a_graph():
    keras.utils.set_random_seed(0)
    model = TFSegmentAnythingModel(small_config())
    images = np.random.default_rng(0).standard_normal((1, 96, 64, 3)).astype(np.float32)
    labels = np.zeros((1, 2, 48, 32), bool)
    labels[:, :, 10:30, 5:20] = True
    embeddings = model.get_image_embeddings(images)
    seed = keras.random.SeedGenerator(1)

    @tf.function
    def loss():
        return keras_loss.interactive_loss(
            partial(model.decode, embeddings), labels, INPUT_HW, 0.0, 1, seed
        )

    first, second = float(loss()), float(loss())
    assert np.isfinite([first, second]).all()
    assert first != second  # other clicks and boxes
