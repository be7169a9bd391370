import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers.model.image_processing_segment_anything import (
    SegmentAnythingImageProcessor,
)
from segment_anything_transformers.prediction.predictor import SAMPredictor
from tests.fake_backend import FakeBackend, small_config
from tests.tiny import random_model

H0, W0 = 70, 110
MASK_HW = (48, 32)


def picture(height=H0, width=W0, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture
def predictor(model):
    predictor = SAMPredictor(model)
    predictor.set_image(picture())
    return predictor


@pytest.fixture
def fake():
    return FakeBackend(small_config())


@pytest.fixture
def fake_predictor(fake):
    predictor = SAMPredictor(fake)
    predictor.set_image(picture())
    return predictor


def random_prompts(n, seed=1):
    """N times two points, two boxes and a mask, in pixels of the picture."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, H0, (n, 2, 2, 2))
    return {
        "points": rng.uniform(0, H0, (n, 2, 2)),
        "labels": rng.integers(0, 2, (n, 2)),
        "boxes": np.concatenate([corners.min(axis=2), corners.max(axis=2)], axis=-1),
        "masks": rng.normal(size=(n, 1, *MASK_HW)).astype(np.float32) * 5,
    }


# ---- results


@pytest.mark.parametrize(("multimask_output", "n_masks"), [(True, 3), (False, 1)])
def test_results_have_the_original_size(predictor, multimask_output, n_masks):
    masks, scores, logits = predictor(
        points=np.array([[20, 30]]), multimask_output=multimask_output
    )
    assert (masks.shape, masks.dtype) == ((n_masks, H0, W0), bool)
    assert (scores.shape, scores.dtype) == ((n_masks,), np.float32)
    assert (logits.shape, logits.dtype) == ((n_masks, *MASK_HW), np.float32)


def test_return_logits_gives_what_the_mask_is_made_of(predictor):
    point = np.array([[20, 30]])
    full_logits, scores, logits = predictor(point, return_logits=True)
    masks, mask_scores, mask_logits = predictor(point)
    assert full_logits.dtype == np.float32
    np.testing.assert_array_equal(masks, full_logits > 0)
    np.testing.assert_array_equal(scores, mask_scores)
    np.testing.assert_array_equal(logits, mask_logits)


def test_the_mask_threshold_is_the_configurations(fake):
    fake.config = small_config(mask_threshold=4.5)
    predictor = SAMPredictor(fake)
    predictor.set_image(picture())
    point = np.array([[50, 30]])
    full_logits = predictor(point, return_logits=True)[0]
    np.testing.assert_array_equal(predictor(point)[0], full_logits > 4.5)


@pytest.mark.parametrize("size_hw", [(70, 110), (110, 40), (96, 64), (13, 200), (300, 301), (1, 1)])
def test_upscaling_equals_two_interpolations_of_torch(fake, size_hw):
    predictor = SAMPredictor(fake)
    predictor.set_image(picture(*size_hw))
    full_logits, _, logits = predictor(points=np.array([[3, 4]]), return_logits=True)
    to_input = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None], (96, 64), mode="bilinear", align_corners=False
    )
    scale = min(96 / size_hw[0], 64 / size_hw[1])
    height, width = (max(1, int(side * scale + 0.5)) for side in size_hw)
    expected = torch.nn.functional.interpolate(
        to_input[..., :height, :width], size_hw, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(full_logits, expected[0].numpy(), rtol=0, atol=1e-4)


# ---- prompts


@pytest.mark.parametrize(
    "kinds",
    [
        ("points", "labels"),
        ("boxes",),
        ("masks",),
        ("points", "labels", "boxes"),
        ("points", "labels", "boxes", "masks"),
    ],
)
@pytest.mark.parametrize("multimask_output", [True, False])
def test_a_batch_equals_one_prompt_at_a_time(predictor, kinds, multimask_output):
    prompts = {kind: values for kind, values in random_prompts(4).items() if kind in kinds}
    options = {"multimask_output": multimask_output, "return_logits": True}
    batched = predictor(**prompts, **options)
    n_masks = 3 if multimask_output else 1
    assert [result.shape for result in batched] == [
        (4, n_masks, H0, W0),
        (4, n_masks),
        (4, n_masks, *MASK_HW),
    ]
    for index in range(4):
        single = predictor(**{kind: values[index] for kind, values in prompts.items()}, **options)
        for result, expected in zip(batched, single, strict=True):
            np.testing.assert_allclose(result[index], expected, rtol=0, atol=1e-5)


def test_points_without_labels_are_foreground(predictor):
    points = np.array([[20, 30], [70, 40]])
    unlabelled = predictor(points, return_logits=True)
    for result, expected in zip(
        unlabelled, predictor(points, np.array([1, 1]), return_logits=True), strict=True
    ):
        np.testing.assert_array_equal(result, expected)
    background = predictor(points, np.array([1, 0]), return_logits=True)
    assert np.abs(unlabelled[0] - background[0]).max() > 1e-4


def test_prompts_are_scaled_from_the_original_image(fake_predictor, fake):
    fake_predictor(
        points=np.array([[10.0, 20.0]]),
        labels=[-1],
        boxes=np.array([[0, 0, 110, 70]]),
    )
    prompts = fake.decoded[-1]
    # 70 x 110 fits into 96 x 64 as 41 x 64: 64 / 110 across, 41 / 70 down
    np.testing.assert_allclose(prompts["points"], [[[10 * 64 / 110, 20 * 41 / 70]]], rtol=1e-6)
    np.testing.assert_allclose(prompts["boxes"], [[[0, 0, 64, 41]]], rtol=1e-6)
    assert prompts["labels"].tolist() == [[-1]]
    assert prompts["masks"] is None
    assert prompts["points"].dtype == prompts["boxes"].dtype == np.float32


def test_another_click_gives_another_mask(predictor):
    first = predictor(np.array([[10, 10]]), return_logits=True)[0]
    second = predictor(np.array([[90, 60]]), return_logits=True)[0]
    assert np.abs(first - second).max() > 1e-3


def test_logits_are_taken_as_the_next_calls_mask(predictor):
    points = np.array([[20, 30]])
    _, scores, logits = predictor(points)
    best = scores.argmax()
    refined = predictor(points, masks=logits[best][None], return_logits=True)[0]
    assert refined.shape == (3, H0, W0)
    assert np.abs(refined - predictor(points, return_logits=True)[0]).max() > 1e-5


def test_a_batch_of_logits_is_taken_too(predictor):
    points = random_prompts(4)["points"]
    logits = predictor(points, multimask_output=False)[2]
    assert predictor(points, masks=logits)[0].shape == (4, 3, H0, W0)


def test_a_prompt_of_length_zero_is_absent(predictor):
    box = np.array([[5, 5, 60, 50]])
    expected = predictor(boxes=box, return_logits=True)
    results = predictor(
        points=np.zeros((0, 2)), boxes=box, masks=np.zeros((0, *MASK_HW)), return_logits=True
    )
    for result, expected_result in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, expected_result)


def test_no_prompt_at_all_is_answered(predictor):
    assert predictor()[0].shape == (3, H0, W0)


@pytest.mark.parametrize(("multimask_output", "n_masks"), [(True, 3), (False, 1)])
def test_a_batch_of_no_prompts_gives_no_masks(predictor, multimask_output, n_masks):
    masks, scores, logits = predictor(boxes=np.zeros((0, 1, 4)), multimask_output=multimask_output)
    assert (masks.shape, masks.dtype) == ((0, n_masks, H0, W0), bool)
    assert scores.shape == (0, n_masks)
    assert logits.shape == (0, n_masks, *MASK_HW)


def test_prompts_may_be_lists_or_tensors(predictor):
    expected = predictor(np.array([[20.0, 30.0]]), np.array([1]))[2]
    np.testing.assert_array_equal(predictor([[20, 30]], [1])[2], expected)
    tensors = torch.tensor([[20.0, 30.0]], requires_grad=True), torch.tensor([1])
    np.testing.assert_array_equal(predictor(*tensors)[2], expected)


# ---- images


def pixel_values_of(image, **config):
    fake = FakeBackend(small_config(**config))
    SAMPredictor(fake).set_image(image)
    return fake.encoded[-1]


@pytest.mark.parametrize("size_hw", [(70, 110), (110, 40), (96, 64), (20, 20), (300, 301)])
def test_the_image_is_prepared_as_by_the_image_processor(size_hw):
    image = picture(*size_hw)
    processor = SegmentAnythingImageProcessor.from_config(small_config())
    expected = processor(image, return_tensors="np")["pixel_values"]
    pixel_values = pixel_values_of(image)
    assert pixel_values.dtype == np.float32
    np.testing.assert_array_equal(pixel_values, expected)


def test_padding_is_zero_after_normalising():
    pixel_values = pixel_values_of(picture(70, 110) // 2)
    assert (pixel_values[:, :, 41:] == 0).all()
    assert (pixel_values[:, :, :41] != 0).any(axis=1).all()


def test_floats_mean_the_same_as_bytes():
    image = picture()
    as_bytes, as_floats = pixel_values_of(image), pixel_values_of(image.astype(np.float64))
    np.testing.assert_allclose(as_floats, as_bytes, rtol=0, atol=1 / 255 / 0.224)


def test_pil_images_mean_the_same_as_arrays():
    image = picture()
    expected = pixel_values_of(image)
    np.testing.assert_array_equal(pixel_values_of(Image.fromarray(image)), expected)
    transparent = Image.fromarray(image).convert("RGBA")
    np.testing.assert_array_equal(pixel_values_of(transparent), expected)


@pytest.mark.parametrize("shape", [(H0, W0), (H0, W0, 1)])
def test_grey_is_repeated(shape):
    grey = picture(channels=1)
    expected = pixel_values_of(np.repeat(grey, 3, axis=2))
    np.testing.assert_array_equal(pixel_values_of(grey.reshape(shape)), expected)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_models_of_other_channels_take_their_images(channels):
    image = picture(channels=channels)
    pixel_values = pixel_values_of(image, in_channels=channels)
    assert pixel_values.shape == (1, channels, 96, 64)
    predictor = SAMPredictor(random_model(small_config(in_channels=channels)))
    predictor.set_image(image)
    assert predictor([[3, 4]])[0].shape == (3, H0, W0)


def test_preprocessing_gets_the_resized_image_and_gives_colours(fake):
    seen = []

    def invert(image):
        seen.append(image)
        return 1 - image / 255

    predictor = SAMPredictor(fake, preprocessing=invert)
    predictor.set_image(np.full((H0, W0, 3), 51, np.uint8))
    assert (seen[0].shape, seen[0].dtype) == ((41, 64, 3), np.uint8)
    assert (seen[0] == 51).all()
    expected = np.zeros((1, 3, 96, 64), np.float32)
    expected[:, :, :41] = 0.8
    np.testing.assert_allclose(fake.encoded[-1], expected, rtol=1e-6)


def test_preprocessing_decides_about_the_range_of_floats(fake):
    predictor = SAMPredictor(fake, preprocessing=lambda image: image)
    predictor.set_image(np.full((96, 64, 3), -1000.5))
    np.testing.assert_array_equal(fake.encoded[-1], np.float32(-1000.5))


def test_an_image_processor_can_be_the_preprocessing(fake):
    processor = SegmentAnythingImageProcessor.from_config(
        small_config(), image_mean=(0.1, 0.2, 0.3), image_std=(0.4, 0.5, 0.6)
    )
    SAMPredictor(fake, preprocessing=processor).set_image(picture())
    expected = processor(picture(), return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(fake.encoded[-1], expected)


def test_preprocessing_must_keep_the_shape(fake):
    predictor = SAMPredictor(fake, preprocessing=lambda image: image.transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"shape it receives, \(41, 64, 3\), got \(3, 41, 64\)"):
        predictor.set_image(picture())


# ---- state


def test_a_predictor_starts_and_ends_without_an_image(model):
    predictor = SAMPredictor(model)
    assert not predictor.is_image_set
    predictor.set_image(picture())
    assert predictor.is_image_set
    assert predictor.original_size == (H0, W0)
    assert predictor.image_embeddings.shape == (1, 32, 12, 8)
    predictor.clear_image()
    assert not predictor.is_image_set


@pytest.mark.parametrize(
    "use",
    [
        lambda predictor: predictor([[1, 1]]),
        lambda predictor: predictor.preprocess_masks(np.zeros((1, H0, W0))),
        lambda predictor: predictor.upscale(np.zeros((1, *MASK_HW))),
        lambda predictor: predictor.image_embeddings,
        lambda predictor: predictor.original_size,
    ],
    ids=["call", "preprocess_masks", "upscale", "image_embeddings", "original_size"],
)
def test_nothing_works_without_an_image(model, use):
    with pytest.raises(RuntimeError, match=r"No image is set\. Call set_image\(image\) first\."):
        use(SAMPredictor(model))


def test_a_second_image_takes_the_place_of_the_first(predictor):
    first = predictor([[20, 30]], return_logits=True)
    predictor.set_image(picture(50, 40, seed=1))
    assert predictor([[20, 30]])[0].shape == (3, 50, 40)
    predictor.set_image(picture())
    for result, expected in zip(predictor([[20, 30]], return_logits=True), first, strict=True):
        np.testing.assert_array_equal(result, expected)


def test_an_image_that_fails_leaves_none_behind(fake_predictor, fake):
    fake_predictor.preprocessing = lambda image: image[:1]
    with pytest.raises(ValueError, match="shape it receives"):
        fake_predictor.set_image(picture())
    assert not fake_predictor.is_image_set


def test_no_gradient_and_no_dropout_and_the_model_as_it_was():
    model = random_model(small_config(encoder_drop_rate=0.5, encoder_attn_drop_rate=0.5))
    model.train()
    model.mask_decoder.eval()
    modes = [module.training for module in model.modules()]
    predictor = SAMPredictor(model)
    predictor.set_image(picture())
    first = predictor([[20, 30]])[2]
    assert not predictor.image_embeddings.requires_grad
    assert [module.training for module in model.modules()] == modes
    predictor.set_image(picture())
    np.testing.assert_array_equal(predictor([[20, 30]])[2], first)


def test_the_model_is_as_it_was_after_an_error():
    model = random_model(small_config()).train()
    predictor = SAMPredictor(model)
    with pytest.raises(ValueError, match="pixel_values"):
        predictor.backend.encode_images(np.zeros((1, 2, 96, 64), np.float32))
    assert all(module.training for module in model.modules())


def test_embeddings_can_train_a_decoder(predictor, model):
    output = model(
        image_embeddings=predictor.image_embeddings,
        input_points=torch.tensor([[[[3.0, 4.0]]]]),
        input_labels=torch.tensor([[[1]]]),
    )
    output.pred_masks.sum().backward()
    assert model.mask_decoder.iou_token.weight.grad is not None
    model.zero_grad()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_back_as_float32(dtype):
    predictor = SAMPredictor(random_model(small_config()).to(dtype))
    predictor.set_image(picture())
    prompts = {kind: values[0] for kind, values in random_prompts(1).items()}
    full_logits, scores, logits = predictor(**prompts, return_logits=True)
    assert full_logits.dtype == scores.dtype == logits.dtype == np.float32
    assert np.isfinite(full_logits).all()


# ---- preprocess_masks


def test_masks_of_the_image_are_resized_and_padded(fake_predictor):
    masks = np.stack([np.full((H0, W0), 3.0), np.full((H0, W0), -2.0)])
    logits = fake_predictor.preprocess_masks(masks)
    assert (logits.shape, logits.dtype) == ((2, *MASK_HW), np.float32)
    # 70 x 110 fits into 96 x 64 as 41 x 64, so into 48 x 32 as 20.5 x 32
    np.testing.assert_allclose(logits[0, :20], 3.0, rtol=1e-6)
    np.testing.assert_allclose(logits[1, :20], -2.0, rtol=1e-6)
    assert (logits[:, 22:] == 0).all()


def test_masks_can_be_batched_for_preprocessing(fake_predictor):
    masks = np.random.default_rng(0).normal(size=(3, 2, H0, W0))
    logits = fake_predictor.preprocess_masks(masks)
    assert logits.shape == (3, 2, *MASK_HW)
    for index in range(3):
        np.testing.assert_array_equal(logits[index], fake_predictor.preprocess_masks(masks[index]))


def test_preprocessing_a_mask_undoes_its_upscaling(fake_predictor):
    rows, columns = np.mgrid[: MASK_HW[0], : MASK_HW[1]]
    smooth = (4 * np.sin(rows / 9) + 3 * np.cos(columns / 7)).astype(np.float32)[None]
    returned = fake_predictor.preprocess_masks(fake_predictor.upscale(smooth))
    np.testing.assert_allclose(returned[:, :20], smooth[:, :20], rtol=0, atol=0.2)


# ---- what a user gets wrong

NAN_BOX = np.array([[1, 2, np.nan, 4]])


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ({"points": [3, 4]}, ValueError, r"points must have shape \(M1, 2\) or .*, got \(2,\)"),
        ({"points": [[1, 2, 3]]}, ValueError, r"points must have shape .*, got \(1, 3\)"),
        ({"points": np.zeros((1, 1, 1, 2))}, ValueError, r"got \(1, 1, 1, 2\)"),
        ({"points": [["a", "b"]]}, TypeError, "points must be an array of numbers"),
        ({"points": [[1, 2], [3]]}, ValueError, "rows of equal length"),
        ({"points": [[1, np.nan]]}, ValueError, "points must be finite, got NaN"),
        ({"points": [[1, np.inf]]}, ValueError, "points must be finite"),
        ({"labels": [1]}, ValueError, "there are no points"),
        ({"labels": [1], "boxes": [[1, 2, 3, 4]]}, ValueError, "there are no points"),
        ({"points": [[1, 2]], "labels": [1, 0]}, ValueError, r"each point, \(1,\), got \(2,\)"),
        ({"points": [[1, 2]], "labels": [[1]]}, ValueError, r"each point, \(1,\), got \(1, 1\)"),
        ({"points": [[1, 2]], "labels": [2]}, ValueError, r"or -1 \(not a point\), got \[2\]"),
        ({"points": [[1, 2]], "labels": [-10]}, ValueError, r"got \[-10\]"),
        ({"points": [[1, 2]], "labels": [0.5]}, ValueError, r"got \[0\.5\]"),
        ({"boxes": [1, 2, 3, 4]}, ValueError, r"boxes must have shape \(M2, 4\) or .*got \(4,\)"),
        ({"boxes": [[1, 2, 3]]}, ValueError, r"boxes must have shape .*, got \(1, 3\)"),
        ({"boxes": NAN_BOX}, ValueError, "boxes must be finite"),
        ({"boxes": [[9, 2, 3, 4]]}, ValueError, r"right >= left .*, got \[9, 2, 3, 4\]"),
        ({"boxes": [[1, 2, 3, 4], [1, 9, 3, 4]]}, ValueError, r"got \[1, 9, 3, 4\]"),
        ({"masks": np.zeros(MASK_HW)}, ValueError, r"masks must have shape \(M, 48, 32\) or"),
        ({"masks": np.zeros((1, 32, 48))}, ValueError, r"got \(1, 32, 48\)"),
        ({"masks": np.zeros((1, H0, W0))}, ValueError, "the size of the model's mask size"),
        ({"masks": np.zeros((1, *MASK_HW), bool)}, TypeError, "logits, got a boolean mask"),
        ({"masks": np.full((1, *MASK_HW), np.nan)}, ValueError, "masks must be finite"),
        (
            {"points": np.zeros((2, 1, 2)), "boxes": np.zeros((3, 1, 4))},
            ValueError,
            r"same length; got points \(2, 1, 2\), labels \(2, 1\), boxes \(3, 1, 4\)",
        ),
        (
            {"points": np.zeros((1, 2)), "boxes": np.zeros((1, 1, 4))},
            ValueError,
            "Either no prompt has a leading batch axis",
        ),
    ],
)
def test_prompts_that_make_no_sense(predictor, prompts, error, message):
    with pytest.raises(error, match=message):
        predictor(**prompts)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        ("photo.jpg", ValueError, "Expected a valid path to an image file.*got 'photo.jpg'"),
        (None, TypeError, "got NoneType"),
        (np.zeros((0, 5, 3)), ValueError, "no pixels"),
        (np.zeros(5), ValueError, r"got shape \(5,\)"),
        (np.zeros((1, 5, 5, 3), np.uint8), ValueError, r"got shape \(1, 5, 5, 3\)"),
        (np.zeros((5, 5, 2), np.uint8), ValueError, r"got shape \(5, 5, 2\)"),
        (np.zeros((5, 5, 3), complex), TypeError, "complex"),
        (np.full((5, 5, 3), np.nan), ValueError, "finite, got NaN or infinity"),
        (np.full((5, 5, 3), 300.0), ValueError, r"\[0, 255\], got 300 to 300"),
        (np.full((5, 5, 3), -1.0), ValueError, r"\[0, 255\], got -1 to -1"),
        (np.full((5, 5, 3), 300), ValueError, "got 300 to 300"),
        (np.full((5, 5, 3), 0.5), ValueError, r"looks like an image in \[0, 1\]"),
    ],
)
def test_images_that_are_none(model, image, error, message):
    with pytest.raises(error, match=message):
        SAMPredictor(model).set_image(image)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.zeros((H0, W0)), ValueError, r"mask must have shape \(M, 70, 110\) or"),
        (np.zeros((1, W0, H0)), ValueError, "the size of the image, got"),
        (np.zeros((1, H0, W0), bool), TypeError, r"np\.where\(mask, 10\.0, -10\.0\)"),
        (np.full((1, H0, W0), np.inf), ValueError, "mask must be finite"),
    ],
)
def test_masks_that_cannot_be_preprocessed(predictor, mask, error, message):
    with pytest.raises(error, match=message):
        predictor.preprocess_masks(mask)


@pytest.mark.parametrize("model", [None, "sam_vit_t", torch.nn.Linear(2, 2)])
def test_only_a_model_is_wrapped(model):
    with pytest.raises(TypeError, match=r"Expected a SegmentAnythingModel, got .*from_pretrained"):
        SAMPredictor(model)
