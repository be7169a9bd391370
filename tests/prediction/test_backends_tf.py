"""The Keras model behind the calls of `Backend`: graphs that are traced once."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import pytest

from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel
from segment_anything_transformers.prediction import keras_graphs
from segment_anything_transformers.prediction.backends import Backend, GoodMasks, backend_for
from tests.fake_backend import small_config
from tests.tiny import random_model

pytestmark = pytest.mark.tf
TOLERANCE = {"rtol": 0.0, "atol": 1e-4}
NAMES = ("points", "labels", "boxes", "masks")


@pytest.fixture(scope="module")
def backends():
    model = random_model(small_config())
    twin = TFSegmentAnythingModel(model.config)
    twin.load_state_dict({name: w.numpy() for name, w in model.state_dict().items()})
    return backend_for(model), backend_for(twin)


@pytest.fixture(scope="module")
def embeddings(backends):
    pixels = np.random.default_rng(0).standard_normal((1, 3, *backends[0].config.input_size))
    return [backend.encode_images(pixels.astype(np.float32)) for backend in backends]


def prompts_of(names, count, length=1, seed=0):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 60, (count, length, 2, 2)), axis=2)
    made = {
        "points": rng.uniform(0, 60, (count, length, 2)).astype(np.float32),
        "labels": rng.integers(-1, 2, (count, length)),
        "boxes": corners.reshape(count, length, 4).astype(np.float32),
        "masks": rng.standard_normal((count, length, 48, 32)).astype(np.float32),
    }
    return [made[name] if name in names else None for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "length", "names", "multimask_output"),
    [  # each is a graph of its own; with all kinds of prompts every combination
        *((100, 1, names, True) for names in (NAMES[:2], NAMES[2:3], NAMES[3:])),
        *((2, 3, names, False) for names in (NAMES[:2], NAMES[2:3], NAMES[3:])),
        *((*size, NAMES, multiple) for size in ((100, 1), (2, 3)) for multiple in (True, False)),
    ],
)
def test_decoding_equals_pytorch(
    backends, embeddings, monkeypatch, group, length, names, multimask_output
):
    """One point leaves fewer tokens than a head has channels, three leave more."""
    positions = dict.fromkeys((True, False), group * 12 * 8)
    monkeypatch.setattr(keras_graphs, "_POSITIONS_AT_ONCE", positions)
    prompts = prompts_of(names, 5, length)
    theirs, ours = (
        backend.decode(image, *prompts, multimask_output)
        for backend, image in zip(backends, embeddings, strict=True)
    )
    for output, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(output, expected, **TOLERANCE)
        assert output.dtype == np.float32


def test_decoding_without_any_prompt(backends, embeddings):
    nothing = (None, None, None, None)
    theirs, ours = (b.decode(e, *nothing, True) for b, e in zip(backends, embeddings, strict=True))
    for output, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(output, expected, **TOLERANCE)


@pytest.mark.slow
def test_masks_above_a_quality_are_those_of_decoding_that_exceed_it(
    backends, embeddings, monkeypatch
):
    monkeypatch.setattr(keras_graphs, "_POSITIONS_AT_ONCE", dict.fromkeys((True, False), 6 * 96))
    _, backend = backends
    points, labels, _, _ = prompts_of(NAMES[:2], 20, 2)
    logits, scores = backend.decode(embeddings[1], points, labels, None, None, True)
    for threshold in (-np.inf, float(np.median(scores)), float(np.quantile(scores, 0.95)), np.inf):
        expected = GoodMasks.above(threshold, logits, scores)
        good = backend.decode_above(embeddings[1], points, labels, threshold)
        np.testing.assert_array_equal(good.prompts, expected.prompts)
        np.testing.assert_allclose(good.mask_logits, expected.mask_logits, **TOLERANCE)
        np.testing.assert_allclose(good.iou_scores, expected.iou_scores, **TOLERANCE)
        assert good.mask_logits.dtype == good.iou_scores.dtype == np.float32


@pytest.mark.slow
def test_no_number_of_images_or_prompt_sets_is_traced_again():
    config = small_config()
    backend = backend_for(TFSegmentAnythingModel(config))
    assert isinstance(backend, Backend)
    for images in (1, 3, 2):
        made = backend.encode_images(np.zeros((images, 3, *config.input_size), np.float32))
    for count in (1, 2, 7, 64, 3):
        for names in (NAMES[:2], NAMES[:3], NAMES):
            backend.decode(made[:1], *prompts_of(names, count), True)
        backend.decode_above(made[:1], *prompts_of(NAMES[:2], count)[:2], 0.0)
    graphs = backend._graphs
    assert graphs.encode.traces == graphs.share.traces == graphs.decode_above.traces == 1
    assert graphs.decode[True].traces == 2  # with boxes and without
    assert graphs.decode_with_masks[True].traces == 1
    again = backend_for(backend.model)  # another predictor of the same model
    again.decode(made[:1], *prompts_of(NAMES[:2], 9), True)
    assert graphs.decode[True].traces == 2


@pytest.mark.slow
def test_more_points_seldom_need_a_trace():
    backend = backend_for(TFSegmentAnythingModel(small_config()))
    made = backend.encode_images(np.zeros((1, 3, *backend.config.input_size), np.float32))
    for length in range(1, 9):
        backend.decode(made, *prompts_of(NAMES[:2], 2, length), True)
    assert backend._graphs.decode[True].traces == 4  # for 1, 2, 4 and 8
