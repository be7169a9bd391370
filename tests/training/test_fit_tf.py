"""Training with Keras: `fit`, a loop of one's own, drop rates, mixed precision."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from segment_anything_transformers import SegmentAnythingModel
from segment_anything_transformers.model.loss_tf_segment_anything import segmentation_loss
from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel
from tests.fake_backend import small_config

pytestmark = pytest.mark.tf
COUNT = 8


def discs(config, count=COUNT, radii=(8, 20)):
    """Images with a bright disc each, a click on it, and its mask at the size of the logits."""
    rng = np.random.default_rng(0)
    height, width = config.input_size
    rows, columns = np.mgrid[:height, :width]
    images, points, truth = [], [], []
    for _ in range(count):
        x, y = rng.uniform(0.3, 0.7, 2) * (width, height)
        disc = (columns - x) ** 2 + (rows - y) ** 2 < rng.uniform(*radii) ** 2
        image = rng.normal(0, 0.2, (height, width, 3)) + 2.0 * disc[..., None]
        images.append(image.astype(np.float32))
        points.append([[x, y]])
        truth.append(disc)
    inputs = {
        "images": np.stack(images),
        "points": np.array(points, np.float32),
        "labels": np.ones((count, 1), np.int32),
    }
    return inputs, np.stack(truth)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return TFSegmentAnythingModel(small_config())


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_fit_lowers_the_loss_and_pytorch_loads_the_result(tmp_path, policy):
    keras.utils.set_random_seed(0)
    start = TFSegmentAnythingModel(small_config())
    start.save_pretrained(tmp_path / "start")
    model = TFSegmentAnythingModel.from_pretrained(tmp_path / "start", dtype=policy)
    inputs, truth = discs(model.config)
    compiled = "auto" if policy == "float32" else False  # XLA takes longer than all steps
    model.compile(keras.optimizers.AdamW(2e-3), jit_compile=compiled)
    before = model.evaluate(inputs, truth, batch_size=4, return_dict=True, verbose=0)
    history = model.fit(inputs, truth, batch_size=4, epochs=15, verbose=0)
    after = model.evaluate(inputs, truth, batch_size=4, return_dict=True, verbose=0)
    assert set(after) == {"loss", "iou"} <= set(history.history)
    assert after["loss"] < 0.8 * before["loss"]
    assert after["iou"] > before["iou"] + 0.1

    model.save_pretrained(tmp_path / "fitted")
    loaded = TFSegmentAnythingModel.from_pretrained(tmp_path / "fitted")
    theirs = SegmentAnythingModel.from_pretrained(tmp_path / "fitted").eval()
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(inputs["images"]).permute(0, 3, 1, 2),
            input_points=torch.from_numpy(inputs["points"])[:, None],
            multimask_output=False,
        ).pred_masks[:, 0]
    _, _, logits = loaded(inputs)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


@pytest.mark.slow
def test_one_image_is_learnt_whole(model):
    inputs, truth = discs(model.config, 1, radii=(24, 28))  # so that a pixel is no hundredth
    steps = 120
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=steps - 20, warmup_target=4e-3, warmup_steps=20
    )
    # XLA takes longer than all steps; the test above fits with it.
    model.compile(keras.optimizers.AdamW(rate), jit_compile=False)
    model.fit(inputs, truth, epochs=steps, verbose=0)
    assert model.evaluate(inputs, truth, return_dict=True, verbose=0)["iou"] >= 0.98


@pytest.mark.slow
def test_a_loop_with_a_tape_learns_from_the_processors_names(model):
    inputs, truth = discs(model.config, 2)
    named = {
        "pixel_values": inputs["images"].transpose(0, 3, 1, 2),
        "input_points": inputs["points"][:, None],
    }
    optimizer = keras.optimizers.Adam(1e-3)
    losses = []
    for _ in range(8):
        with tf.GradientTape() as tape:
            _, scores, logits = model(named, training=True, multimask_output=True)
            loss = segmentation_loss(logits, scores, truth[:, None])
        pairs = zip(
            tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True
        )
        # weights for prompts that are not given have none
        optimizer.apply_gradients([pair for pair in pairs if pair[0] is not None])
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0]


def test_every_weight_but_the_positions_learns(model):
    inputs, truth = discs(model.config, 2)
    inputs["boxes"] = np.array([[[4, 4, 50, 80]]] * 2, np.float32)
    inputs["masks"] = np.ones((2, 1, *model.mask_size()), np.float32)
    model.compile(keras.optimizers.SGD(1.0), run_eagerly=True)  # one step is not worth a graph
    kept = {name: array.copy() for name, array in model.state_dict().items()}
    model.train_on_batch(inputs, truth)
    same = {n for n, a in model.state_dict().items() if np.array_equal(a, kept[n])}
    # Of the multiple masks only the best of each image learns.
    multiple = tuple(f"mask_decoder.output_hypernetworks_mlps.{k}." for k in (1, 2, 3))
    # What keys of the image have in common changes no attention.
    common = {name for name in kept if name.endswith("token_to_image.k_proj.bias")}
    assert len(common) == 3
    assert {name for name in same - common if not name.startswith(multiple)} == {
        "prompt_encoder.point_embeddings.0.weight",  # all points are foreground
        "prompt_encoder.not_a_point_embed.weight",  # there is a box
        "prompt_encoder.no_mask_embed.weight",  # there is a mask
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",  # never learns
    }
    assert not all(name in same for name in kept if name.startswith(multiple))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rate", ["encoder_drop_rate", "encoder_attn_drop_rate", "encoder_drop_path_rate"]
)
def test_each_drop_rate_acts_in_training_alone(rate):
    keras.utils.set_random_seed(0)  # a block of two is dropped or not: two draws may be equal
    model = TFSegmentAnythingModel(small_config(**{rate: 0.5}))
    images = np.random.default_rng(0).standard_normal((2, *model.config.input_size, 3))
    images = images.astype(np.float32)
    quiet = [np.asarray(model.get_image_embeddings(images)) for _ in range(2)]
    np.testing.assert_array_equal(*quiet)
    noisy = [np.asarray(model.get_image_embeddings(images, training=True)) for _ in range(2)]
    assert not np.array_equal(*noisy)
    assert not np.array_equal(noisy[0], quiet[0])
    for training, is_same in ((False, True), (True, False)):
        logits = [np.asarray(model({"images": images}, training=training)[2]) for _ in range(2)]
        assert np.array_equal(*logits) == is_same


def test_another_loss_of_compile_is_used(model):
    inputs, truth = discs(model.config, 2)

    def loss(labels, scores):
        return keras.ops.mean(keras.ops.square(scores - 0.5))

    model.compile("sgd", loss=[None, loss, None], run_eagerly=True)
    logs = model.train_on_batch(inputs, (truth, np.zeros((2, 1)), truth), return_dict=True)
    assert "iou" not in logs or logs["iou"] == 0
    assert logs["loss"] < 1e3
    masks, scores, _ = model(inputs)
    assert masks.shape[1] == scores.shape[1] == 1


@pytest.mark.parametrize("faulty", ["no truth", "sample weights"])
def test_training_says_what_it_takes(model, faulty):
    inputs, truth = discs(model.config, 2)
    model.compile("sgd", run_eagerly=True)
    truth, weights = (None, None) if faulty == "no truth" else (truth, np.ones(2))
    with pytest.raises(ValueError, match="pairs \\(inputs, true masks\\), without sample weights"):
        model.train_on_batch(inputs, truth, sample_weight=weights)


def values_that_make_no_sense(masks, kind):
    return {
        "7": masks * 7,
        "1 and 255": np.where(masks, 255, np.eye(*masks.shape[-2:], dtype=int)),
        "NaN": np.where(masks, np.nan, 0.0),
    }[kind]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch", "test_on_batch"])
@pytest.mark.parametrize("kind", ["7", "1 and 255", "NaN"])
def test_compiled_steps_refuse_true_masks_that_make_no_sense(model, method, kind):
    inputs, truth = discs(model.config, 2)
    model.compile("sgd")
    assert not model.run_eagerly
    with pytest.raises(ValueError, match="labels must be boolean, from 0 to 1, or 0 and 255"):
        getattr(model, method)(inputs, values_that_make_no_sense(truth, kind))


def with_two_sets(inputs):
    """The processor's names, and the click of each image twice."""
    return {
        "pixel_values": inputs["images"].transpose(0, 3, 1, 2),
        "input_points": np.repeat(inputs["points"][:, None], 2, axis=1),
        "input_boxes": None,
    }


def test_compiled_steps_refuse_ids_of_no_prompt_set(model):
    inputs, truth = discs(model.config, 2)
    model.compile("sgd")
    with pytest.raises(ValueError, match="numbers of the 2 prompt sets from 1 on; got 3"):
        model.train_on_batch(with_two_sets(inputs), truth * 3)


@pytest.mark.slow
@pytest.mark.parametrize("clicks", [0, 1])
def test_instance_ids_are_learnt_as_the_masks_of_the_prompt_sets(model, clicks):
    inputs, truth = discs(model.config, 2)
    ids = np.where(truth, 2, 0)
    ids[:, :20], ids[:, -10:] = 1, -1
    masks = np.stack([np.where(ids < 0, -1, 255 * (ids == number)) for number in (1, 2)], axis=1)
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=True)
    model.clicks = clicks
    losses = []
    for labels in (ids, masks):
        keras.utils.set_random_seed(1)
        losses.append(model.train_on_batch(with_two_sets(inputs), labels))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
