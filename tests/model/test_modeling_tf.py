"""The TensorFlow class against the PyTorch one: same weights, same inputs, whole tensors."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
    SegmentAnythingProcessor,
)
from segment_anything_transformers.model.image_processing_segment_anything import (
    SegmentAnythingImageProcessor,
)
from segment_anything_transformers.model.modeling_tf_segment_anything import TFSegmentAnythingModel
from tests.fake_backend import small_config
from tests.parity.peers import huggingface_model
from tests.rounding import assert_within_rounding
from tests.tiny import (
    IMAGES,
    MIXTURES,
    SETS,
    random_images,
    random_model,
    random_prompts,
    square_config,
)

pytestmark = pytest.mark.tf
TOLERANCE = {"rtol": 0.0, "atol": 1e-4}


def twin(model, **fields):
    """The TensorFlow model with the same weights."""
    made = TFSegmentAnythingModel(model.config)
    made.load_state_dict({name: w.numpy() for name, w in model.state_dict().items()})
    return made


@pytest.fixture(scope="module")
def models():
    model = random_model(small_config())
    return model, twin(model)


@pytest.fixture(scope="module")
def pixels(models):
    return random_images(models[0].config)


@pytest.fixture(scope="module")
def prompts(models):
    return random_prompts(models[0].config)


def in_numpy(inputs):
    return {name: np.asarray(tensor) for name, tensor in inputs.items()}


def channels_last(tensor):
    return np.ascontiguousarray(np.asarray(tensor).transpose(0, 2, 3, 1))


@torch.no_grad()
def test_image_embeddings_equal(models, pixels):
    ours, theirs = models[1].get_image_embeddings(channels_last(pixels)), models[0]
    expected = channels_last(theirs.get_image_embeddings(pixels))
    np.testing.assert_allclose(ours, expected, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("names", MIXTURES)
@pytest.mark.parametrize("multimask_output", [True, False])
@torch.no_grad()
def test_every_combination_of_prompts_equals(models, pixels, prompts, names, multimask_output):
    inputs = {"pixel_values": pixels, **{name: prompts[name] for name in names}}
    expected = models[0](**inputs, multimask_output=multimask_output)
    _, scores, logits = models[1](in_numpy(inputs), multimask_output=multimask_output)
    np.testing.assert_allclose(logits, expected.pred_masks, **TOLERANCE)
    np.testing.assert_allclose(scores, expected.iou_scores, **TOLERANCE)


@pytest.mark.parametrize("names", MIXTURES)
@torch.no_grad()
def test_prompt_embeddings_equal(models, prompts, names):
    inputs = {name: prompts[name] for name in names}
    tokens, grid = models[1].get_prompt_embeddings(in_numpy(inputs))
    expected_tokens, expected_grid = models[0].get_prompt_embeddings(**inputs)
    expected_grid = np.moveaxis(np.asarray(expected_grid), 2, -1)
    np.testing.assert_allclose(grid, expected_grid, **TOLERANCE)
    if expected_tokens is None:
        assert tokens is None
    else:
        np.testing.assert_allclose(tokens, expected_tokens, **TOLERANCE)


@torch.no_grad()
def test_padding_is_invisible(models, pixels, prompts):
    inputs = {name: tensor.clone() for name, tensor in prompts.items()}
    inputs["input_points"][0, 1, 2:] = -10
    inputs["input_labels"][0, 1, 2:] = -10
    inputs["input_boxes"][1, 0] = -10
    inputs["input_masks"][0, 2, 1] = float("nan")
    inputs["input_masks"][1, 1] = float("nan")
    expected = models[0](pixels, **inputs)
    _, _, logits = models[1](
        {"pixel_values": np.asarray(pixels), **in_numpy(inputs)}, multimask_output=True
    )
    np.testing.assert_allclose(logits, expected.pred_masks, **TOLERANCE)


@torch.no_grad()
def test_call_is_the_specifications(models, pixels, prompts):
    inputs = {
        "images": channels_last(pixels),
        "points": np.asarray(prompts["input_points"][:, 0]),
        "labels": np.asarray(prompts["input_labels"][:, 0]),
        "boxes": np.zeros((IMAGES, 0, 4), np.float32),
        "masks": np.zeros((IMAGES, 0, *models[0].mask_size()), np.float32),
    }
    masks, scores, logits = models[1](inputs, multimask_output=True)
    height, width = models[0].config.input_size
    assert masks.shape == (IMAGES, 3, height, width)
    assert masks.dtype == "bool"
    assert scores.shape == (IMAGES, 3)
    expected = models[0](pixels, prompts["input_points"][:, :1], prompts["input_labels"][:, :1])
    np.testing.assert_allclose(logits, expected.pred_masks[:, 0], **TOLERANCE)
    upscaled, single, _ = models[1](inputs, return_logits=True)
    assert single.shape == (IMAGES, 1)
    single_logits = models[1](inputs)[2]
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(np.array(single_logits)), (height, width), mode="bilinear"
    )
    np.testing.assert_allclose(upscaled, expected, **TOLERANCE)
    absent = {name: inputs[name] for name in ("images", "points", "labels")}
    np.testing.assert_allclose(models[1](absent)[2], single_logits, **TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [4, 6, 8, 16])
@torch.no_grad()
def test_another_input_size_equals(patch):
    model = random_model(
        small_config(
            encoder_patch_size=patch, input_size=(11 * patch, 7 * patch), fixed_input_size=False
        )
    )
    pixels = torch.randn(2, 3, 5 * patch, 13 * patch)
    prompts = random_prompts(model.config)
    inputs = {"pixel_values": pixels, "input_boxes": prompts["input_boxes"]}
    expected = model(**inputs).pred_masks
    masks, _, logits = twin(model)(in_numpy(inputs), multimask_output=True, return_logits=True)
    np.testing.assert_allclose(logits, expected, **TOLERANCE)
    upscaled = torch.nn.functional.interpolate(
        expected.flatten(0, 1), pixels.shape[2:], mode="bilinear"
    )
    np.testing.assert_allclose(masks, upscaled.unflatten(0, expected.shape[:2]), **TOLERANCE)


def plain_inputs(images, points, boxes, masks, size):
    """As `call` takes them in the specification, random, some of them of length 0."""
    return {
        "masks": tf.random.normal((images, masks, size[0] // 2, size[1] // 2)),
        "images": tf.random.normal((images, *size)),
        "points": tf.random.uniform((images, points, 2), maxval=60.0),
        "labels": tf.ones((images, points)),
        "boxes": tf.random.uniform((images, boxes, 4), maxval=60.0),
    }


def inputs_of_sets(images, sets, points, boxes, masks, size):
    """With an axis P, as the processor returns them."""
    return {
        "input_masks": tf.random.normal((images, sets, masks, size[0] // 2, size[1] // 2)),
        "pixel_values": tf.random.normal((images, size[2], *size[:2])),
        "input_points": tf.random.uniform((images, sets, points, 2), maxval=60.0),
        "input_labels": tf.ones((images, sets, points)),
        "input_boxes": tf.random.uniform((images, sets, boxes, 4), maxval=60.0),
    }


def with_unknown_numbers(inputs):
    """What a graph has to be told: only the size of the images and the last axes are known."""
    known = {"images": 3, "pixel_values": 3, "labels": 0, "input_labels": 0}
    known |= {"masks": 2, "input_masks": 2}
    return {
        name: tf.TensorSpec(
            [None] * (len(value.shape) - known.get(name, 1))
            + value.shape[len(value.shape) - known.get(name, 1) :].as_list(),
            value.dtype,
        )
        for name, value in inputs.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (plain_inputs, [(1, 1, 0, 0), (2, 3, 1, 1), (3, 0, 2, 0), (1, 5, 5, 2)]),
        (inputs_of_sets, [(1, 1, 1, 0, 0), (2, 3, 2, 1, 2), (1, 4, 0, 2, 0)]),
    ],
    ids=["plain", "sets"],
)
def test_one_graph_takes_any_number_of_images_and_prompts(models, make, sizes, jit_compile):
    ours, size = models[1], (*models[0].config.input_size, 3)

    def run(inputs):
        return ours(inputs, multimask_output=True)

    signature = [with_unknown_numbers(make(*sizes[0], size))]
    sizes = sizes[1:3] if jit_compile else sizes  # XLA compiles anew for each
    graph = tf.function(run, input_signature=signature, jit_compile=jit_compile)
    for numbers in sizes:
        inputs = make(*numbers, size)
        for eager, traced in zip(ours(inputs, multimask_output=True), graph(inputs), strict=True):
            if eager.dtype == tf.bool:
                assert np.mean(np.asarray(traced) == np.asarray(eager)) > 0.999
            else:
                np.testing.assert_allclose(traced, eager, **TOLERANCE)


@pytest.mark.parametrize("max_shard_size", ["50GB", "50KB"])
def test_the_file_is_the_one_that_pytorch_writes(models, tmp_path, max_shard_size):
    models[0].save_pretrained(tmp_path / "torch", max_shard_size=max_shard_size)
    loaded = TFSegmentAnythingModel.from_pretrained(tmp_path / "torch")
    loaded.save_pretrained(tmp_path / "tf", max_shard_size=max_shard_size)
    files = sorted(path.name for path in (tmp_path / "torch").glob("model[.-]*"))
    assert files == sorted(path.name for path in (tmp_path / "tf").glob("model[.-]*"))
    assert (len(files) > 2) == (max_shard_size == "50KB")  # with the index
    for name in files:
        assert (tmp_path / "tf" / name).read_bytes() == (tmp_path / "torch" / name).read_bytes()
    again = SegmentAnythingModel.from_pretrained(tmp_path / "tf")
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.slow
def test_every_origin_of_weights_is_read_as_by_pytorch(tmp_path):
    model = random_model(square_config())
    huggingface_model(model).save_pretrained(tmp_path / "huggingface")
    torch.save(model.state_dict(), tmp_path / "meta.pth")
    fields = {"in_channels": 4, "input_size": (64, 120)}
    for name, options in (("huggingface", {}), ("huggingface", fields), ("meta.pth", {})):
        theirs = SegmentAnythingModel.from_pretrained(tmp_path / name, **options).state_dict()
        ours = TFSegmentAnythingModel.from_pretrained(tmp_path / name, **options).state_dict()
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            np.testing.assert_array_equal(ours[key], tensor, err_msg=key)


@pytest.fixture(scope="module", params=["bfloat16", "float16"])
def half(request, models, tmp_path_factory):
    """The TensorFlow model that computes in half precision."""
    folder = tmp_path_factory.mktemp(request.param)
    models[0].save_pretrained(folder)
    made = TFSegmentAnythingModel.from_pretrained(folder, dtype=f"mixed_{request.param}")
    assert keras.config.dtype_policy().name == "float32"
    assert made.compute_dtype == request.param
    return made


@pytest.mark.slow
@pytest.mark.parametrize("names", MIXTURES)
@torch.no_grad()
def test_half_precision_follows_float32_within_its_rounding(models, half, pixels, prompts, names):
    inputs = {"pixel_values": pixels, **{name: prompts[name] for name in names}}
    expected = models[0](**inputs)
    _, scores, logits = half(in_numpy(inputs), multimask_output=True)
    assert logits.dtype == half.compute_dtype
    dtype = getattr(torch, half.compute_dtype)
    assert_within_rounding(np.asarray(logits, np.float32), expected.pred_masks, dtype)
    assert_within_rounding(np.asarray(scores, np.float32), expected.iou_scores, dtype)


@torch.no_grad()
def test_the_processors_output_is_taken(models):
    config = models[0].config
    processor = SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(config))
    images = [np.zeros((50, 70, 3), np.uint8), np.full((90, 40, 3), 200, np.uint8)]
    points = [[[[10, 20]], [[30, 5], [40, 9]]], [[[20, 50]]]]
    inputs = processor(images, input_points=points, return_tensors="np")
    masks, scores, logits = models[1](dict(inputs))
    assert masks.shape == (2, 2, 1, *config.input_size)
    names = ("pixel_values", "input_points", "input_labels")
    tensors = processor(images, input_points=points, return_tensors="pt")
    expected = models[0](**{name: tensors[name] for name in names}, multimask_output=False)
    np.testing.assert_allclose(logits, expected.pred_masks, **TOLERANCE)
    np.testing.assert_allclose(scores, expected.iou_scores, **TOLERANCE)


def test_weights_that_do_not_fit_are_named(models):
    state = models[1].state_dict()
    state["stranger"] = state.pop("mask_decoder.iou_token.weight")
    state["image_encoder.pos_embed"] = state["image_encoder.pos_embed"][:, 1:]
    message = r"Missing: \['mask_decoder.iou_token.weight'\].*\['stranger'\].*pos_embed is \(1, 11"
    with pytest.raises(ValueError, match=message):
        TFSegmentAnythingModel(models[0].config).load_state_dict(state)


BAD = {
    "no image": ({}, "exactly one of images, pixel_values, image_embeddings"),
    "unknown": ({"picture": np.zeros(1)}, r"Unknown inputs \['picture'\]"),
    "channels": ({"images": np.zeros((1, 96, 64, 1), np.float32)}, r"\(N, H, W, 3\)"),
    "size": ({"images": np.zeros((1, 64, 96, 3), np.float32)}, r"\(96, 64\) pixels, got"),
    "labels alone": ({"labels": np.ones((1, 1))}, "labels need points"),
    "mixed": ({"points": np.ones((1, 1, 2)), "input_boxes": np.ones((1, 1, 4))}, "not both"),
}


@pytest.mark.parametrize(("inputs", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_says_what_was_expected(models, inputs, message):
    with pytest.raises(ValueError, match=message):
        models[1].call(inputs)


def test_dummy_inputs_run(models):
    masks, scores, logits = models[1](models[1].dummy_inputs)
    assert masks.shape == (1, 1, 96, 64)
    assert models[1].grid_size() == (12, 8)
    assert models[1].mask_size() == logits.shape[2:] == (48, 32)
    assert SETS * scores.shape[0] == 3


@pytest.mark.slow
def test_predictor_gives_the_same_masks(models):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    prompts = {
        "points": np.array([[[10, 20]], [[40, 5]]]),
        "boxes": np.array([[[5, 5, 40, 30]], [[20, 0, 69, 20]]]),
    }
    results = []
    for model in models:
        predictor = SAMPredictor(model)
        predictor.set_image(image)
        results.append(predictor(**prompts, return_logits=True))
    for theirs, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, **TOLERANCE)
        assert ours.dtype == np.float32


def test_generator_gives_the_same_masks(models):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    options = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    theirs, ours = (
        SAMAutomaticMaskGenerator(model, output_mode="coco_rle", **options).generate(image)
        for model in models
    )
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one["bbox"] == other["bbox"]
        assert one["predicted_iou"] == pytest.approx(other["predicted_iou"], abs=1e-4)
