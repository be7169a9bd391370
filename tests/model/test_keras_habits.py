"""What who knows Keras writes: its ways to save, copy, train, round and share a model."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import gc
import json
import pickle
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import torch

from segment_anything_transformers import SAMPredictor, TFSegmentAnythingModel
from tests.fake_backend import small_config
from tests.rounding import assert_within_rounding
from tests.tiny import random_model

pytestmark = [
    pytest.mark.tf,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras' own
]

CONFIG = small_config(
    name="tiny",
    encoder_nb_blocks=1,
    encoder_global_attn_indices=(),
    decoder_nb_blocks=1,
    decoder_iou_head_depth=2,
    nb_multimask_outputs=2,
)
HEIGHT, WIDTH = CONFIG.input_size
IMAGES = 2


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    return {
        "images": rng.normal(size=(IMAGES, HEIGHT, WIDTH, 3)).astype(np.float32),
        "points": np.float32([[[10, 20]], [[40, 70]]]),
        "labels": np.ones((IMAGES, 1), np.int32),
        "boxes": np.float32([[[3, 4, 50, 60]], [[20, 30, 60, 90]]]),
        "masks": rng.normal(size=(IMAGES, 1, *CONFIG.mask_size())).astype(np.float32),
    }


@pytest.fixture(scope="module")
def truth():
    masks = np.zeros((IMAGES, HEIGHT, WIDTH), np.uint8)
    masks[:, 10:50, 5:40] = 1
    return masks


def new_model(seed=0, **options):
    model = TFSegmentAnythingModel(CONFIG, **options)
    weights = random_model(CONFIG, seed).state_dict()
    model.load_state_dict({name: weight.numpy() for name, weight in weights.items()})
    return model


@pytest.fixture(scope="module")
def model():
    return new_model()


def answers(model, inputs):
    """All that the model says, in float32."""
    return [np.asarray(result, np.float32) for result in model(inputs, return_logits=True)]


def assert_equal(model, other, inputs):
    for found, expected in zip(answers(model, inputs), answers(other, inputs), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---- saving


def test_a_whole_model_is_saved_and_loaded(model, inputs, tmp_path):
    model.save(tmp_path / "sam.keras")
    loaded = keras.models.load_model(tmp_path / "sam.keras")
    assert type(loaded) is TFSegmentAnythingModel
    assert loaded.config == CONFIG
    assert loaded.name == model.name
    assert_equal(loaded, model, inputs)


def test_weights_alone_are_saved_and_loaded(model, inputs, tmp_path):
    model.save_weights(tmp_path / "sam.weights.h5")
    other = new_model(seed=1)
    other.load_weights(tmp_path / "sam.weights.h5")
    assert_equal(other, model, inputs)


def test_the_architecture_is_described_in_json(model):
    model.clicks = 3
    described = model.get_config()
    assert json.loads(json.dumps(described)) == described
    for other in (
        TFSegmentAnythingModel.from_config(described),
        keras.models.model_from_json(model.to_json()),
        keras.models.clone_model(model),
    ):
        assert other.config == CONFIG
        assert other.clicks == 3
        assert [w.shape for w in other.weights] == [w.shape for w in model.weights]
        assert not np.array_equal(other.get_weights()[0], model.get_weights()[0])
    model.clicks = 0


@pytest.mark.slow
def test_a_training_goes_on_from_a_checkpoint(inputs, truth, tmp_path):
    """With the moments of its optimizer."""
    model = new_model()
    model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    model.fit(inputs, truth, verbose=0, callbacks=[saving])
    resumed = keras.models.load_model(tmp_path / "1.keras")
    assert resumed.optimizer.iterations == 1
    for one in (model, resumed):
        one.fit(inputs, truth, verbose=0)
    for found, expected in zip(resumed.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-6)


def test_a_predictor_of_a_keras_model_goes_to_another_process(model):
    predictor = SAMPredictor(model)
    other = pickle.loads(pickle.dumps(predictor))
    for one in (predictor, other):
        one.set_image(np.full((50, 70, 3), 90, np.uint8))
    np.testing.assert_array_equal(other.image_embeddings, predictor.image_embeddings)


# ---- precision


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "weights"),
    [("mixed_float16", "float32"), ("mixed_bfloat16", "float32"), ("bfloat16", "bfloat16")],
)
def test_a_dtype_policy_is_that_of_every_layer(inputs, tmp_path, policy, weights):
    half, exact = new_model(dtype=policy), new_model()
    exact.load_state_dict(half.state_dict())  # rounded, where the policy rounds weights
    assert keras.config.dtype_policy().name == "float32"
    for name, variable in {w.path: w for w in half.weights}.items():
        is_position = "position_encoding" in name
        assert variable.dtype == ("float32" if is_position else weights), name
    dtype = getattr(torch, policy.removeprefix("mixed_"))
    assert str(dtype).endswith(half(inputs)[2].dtype.name)
    for found, expected in zip(answers(half, inputs)[1:], answers(exact, inputs)[1:], strict=True):
        assert_within_rounding(found, expected, dtype)
    half.save(tmp_path / "half.keras")
    loaded = keras.models.load_model(tmp_path / "half.keras")
    assert loaded.dtype_policy.name == policy
    assert_equal(loaded, half, inputs)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method:UserWarning")
def test_8_bits_cost_little_and_are_saved(model, inputs, tmp_path, monkeypatch):
    """Logits are off by no more than a twentieth of the largest one."""
    monkeypatch.setattr(gc, "collect", lambda *_: 0)  # Keras collects after every layer
    rounded = new_model()
    rounded.quantize("int8")
    dense = [layer for layer in rounded._flatten_layers() if isinstance(layer, keras.layers.Dense)]
    assert {layer.quantization_mode for layer in dense} == {"int8"}
    for found, exact in zip(answers(rounded, inputs), answers(model, inputs), strict=True):
        assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    rounded.save(tmp_path / "rounded.keras")
    loaded = keras.models.load_model(tmp_path / "rounded.keras")
    assert_equal(loaded, rounded, inputs)
    with pytest.raises(ValueError, match=r"qkv is quantised \(int8\).*save\(\"sam.keras\"\)"):
        rounded.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder" / "model.safetensors").exists()


# ---- training


def distance(labels, logits):
    return keras.ops.mean(keras.ops.square(labels - logits))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "dictionary"])
def test_losses_of_ones_own_see_logits(inputs, truth, kind):
    model = new_model()
    before = model.get_weights()
    smaller = truth[:, None, ::2, ::2].astype(np.float32)  # the size of the logits
    values = [truth[:, None].astype(np.float32), np.ones((IMAGES, 1), np.float32), smaller]
    losses = [keras.losses.BinaryCrossentropy(from_logits=True), None, distance]
    if kind == "dictionary":
        values = dict(zip(model.output_names, values, strict=True))
        losses = dict(zip(model.output_names, losses, strict=True))
    model.compile("sgd", loss=losses, run_eagerly=True)
    masks, _, logits = answers(new_model(), inputs)
    given = [*values.values()] if kind == "dictionary" else values
    expected = [float(losses_of(masks, given[0])), float(distance(given[2], logits))]
    logs = model.train_on_batch(inputs, values, return_dict=True)
    np.testing.assert_allclose(
        [logs["masks_loss"], logs["logits_loss"], logs["loss"]],
        [*expected, sum(expected)],
        rtol=1e-4,
    )
    assert not np.array_equal(before[0], model.get_weights()[0])
    assert model(inputs)[0].dtype == bool


def losses_of(logits, labels):
    return keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)


@pytest.mark.parametrize("loss", ["mse", ["mse", None, None]])
def test_a_truth_for_one_result_says_what_is_missing(inputs, truth, loss):
    model = new_model()
    model.compile("sgd", loss=loss, run_eagerly=True)
    with pytest.raises(ValueError, match=r"a list of three.*got ndarray.*has the paper's loss"):
        model.train_on_batch(inputs, truth)


def test_mixed_precision_learns_with_a_scaled_loss(inputs, truth):
    model = new_model(dtype="mixed_float16")
    model.compile("sgd", run_eagerly=True)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    before = model.get_weights()
    model.train_on_batch(inputs, truth)
    after = model.get_weights()
    assert all(np.isfinite(weight).all() for weight in after)
    assert not np.array_equal(before[0], after[0])


@pytest.mark.slow
def test_replicas_learn_as_one_model_does(tmp_path):
    """On two virtual processors, which TensorFlow has to know of before it starts."""
    command = [sys.executable, "-m", "tests.model.replicas"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["replicas"] == 2
    assert found["of_two"] == pytest.approx(found["of_one"], rel=1e-5)
    assert 0 < found["change"]
    assert found["difference"] < 1e-5 * max(1.0, found["change"])


def test_export_to_onnx_says_where_it_is(model, tmp_path):
    with pytest.raises(ValueError, match=r"export_onnx\(SegmentAnythingModel.from_pretrained"):
        model.export(tmp_path / "sam.onnx", format="onnx")
    assert not [*tmp_path.iterdir()]
