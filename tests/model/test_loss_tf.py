"""The Keras loss against the PyTorch one: values and gradients."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import pytest
import tensorflow as tf
import torch

from segment_anything_transformers.model import loss_segment_anything as torch_loss
from segment_anything_transformers.model import loss_tf_segment_anything as keras_loss

pytestmark = pytest.mark.tf
N, P, K, H, W = 2, 3, 4, 12, 8
LOSSES = ("segmentation_loss", "loss_of_all_masks")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def logits(rng):
    return 3 * rng.standard_normal((N, P, K, H, W), np.float32)


@pytest.fixture
def scores(rng):
    return rng.random((N, P, K), np.float32)


def labels_of(rng, kind, size_hw):
    labels = rng.random((N, P, *size_hw), np.float32)
    if kind == "boolean":
        return labels > 0.6
    if kind == "partly unknown":
        labels[labels < 0.2] = -1
        labels[0, 1] = -1  # nothing is known of this one
    return labels


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", ["boolean", "shares", "partly unknown"])
@pytest.mark.parametrize("size_hw", [(H, W), (50, 31), (5, 7)])
def test_losses_and_gradients_equal(rng, logits, scores, name, kind, size_hw):
    labels = labels_of(rng, kind, size_hw)
    theirs = [torch.from_numpy(array).requires_grad_() for array in (logits, scores)]
    expected = getattr(torch_loss, name)(*theirs, torch.from_numpy(labels))
    expected.backward()
    ours = [tf.Variable(array) for array in (logits, scores)]
    with tf.GradientTape() as tape:
        loss = getattr(keras_loss, name)(*ours, labels)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for gradient, tensor in zip(tape.gradient(loss, ours), theirs, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("size_hw", [(H, W), (36, 24), (37, 29), (5, 7)])
def test_labels_are_resized_alike(rng, logits, size_hw):
    labels = labels_of(rng, "partly unknown", size_hw)
    expected = torch_loss.resize_labels(torch.from_numpy(labels), torch.from_numpy(logits))
    truth, known = keras_loss.resize_labels(labels, tf.constant(logits))
    np.testing.assert_allclose(truth, expected[0], atol=1e-6)
    np.testing.assert_array_equal(known, expected[1])


def test_corrections_lie_where_the_mask_is_wrong(rng):
    masks, truth = rng.random((2, N, P, H, W)) > 0.5
    masks[0, 0] = truth[0, 0]  # no fault: any point of the object
    for seed in range(20):
        points, labels = keras_loss.correction_points(masks, truth, seed=seed)
        for image in range(N):
            for number in range(P):
                x, y = np.asarray(points)[image, number].astype(int)
                is_object = truth[image, number, y, x]
                is_found = masks[image, number, y, x]
                assert labels[image, number] == is_object
                assert is_found != is_object or (image, number) == (0, 0)


def test_corrections_differ_from_seed_to_seed(rng):
    masks, truth = rng.random((2, N, P, H, W)) > 0.5
    drawn = {np.asarray(keras_loss.correction_points(masks, truth, s)[0]).tobytes() for s in (1, 2)}
    assert len(drawn) == 2


@pytest.mark.parametrize("shape", [(H, W), (N, P + 1, H, W), (N, P, 1, H, W)])
def test_labels_of_another_shape_are_refused(logits, scores, shape):
    with pytest.raises(ValueError, match=r"labels must have the shape \('N', 3, 'h', 'w'\)"):
        keras_loss.segmentation_loss(tf.constant(logits), scores, np.zeros(shape, bool))
