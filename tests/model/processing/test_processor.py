import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam.processing_sam import SamProcessor

from segment_anything_transformers import (
    ImageResizer,
    SegmentAnythingImageProcessor,
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
    SegmentAnythingProcessor,
)
from tests.model.processing.inputs import INPUT_SIZE, MASK_SIZE, PROMPT_NAMES, SIZES


def in_input(size, coordinates):
    """Points or boxes of an image in pixels of the model input."""
    resizer = ImageResizer(size, INPUT_SIZE)
    length = np.shape(coordinates)[-1]
    return resizer.scale_points(coordinates) if length == 2 else resizer.scale_boxes(coordinates)


# ---------------------------------------------------------------------------------- nesting


POINTS = np.array([[[3, 4.5], [5, 6]], [[7, 8], [9, 1]], [[2, 2], [4, 4]]])  # (P, M1, 2)
POINTS_IN_INPUT = in_input(SIZES[0], POINTS)


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, np.ndarray.tolist, list, tuple])
@pytest.mark.parametrize(
    ("points", "expected"),
    [
        (POINTS[None], POINTS_IN_INPUT[None]),  # [image][prompt set][point][xy]
        (POINTS, POINTS_IN_INPUT[None]),  # [prompt set][point][xy]
        (POINTS[:1], POINTS_IN_INPUT[None, :1]),  # [image][point][xy], one prompt set
        (POINTS[0], POINTS_IN_INPUT[None, :1]),  # [point][xy]
        (POINTS[0, 0], POINTS_IN_INPUT[None, :1, :1]),  # [xy]
    ],
    ids=["image-set-point", "set-point", "image-point", "point", "xy"],
)
def test_points_of_one_image_may_leave_levels_out(processor, images, points, expected, convert):
    inputs = processor(images[0], input_points=convert(points))
    np.testing.assert_array_equal(inputs["input_points"], expected)
    assert inputs["input_points"].dtype == np.float32
    np.testing.assert_array_equal(inputs["input_labels"], np.ones(expected.shape[:-1]))
    assert inputs["input_labels"].dtype == np.int64


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, np.ndarray.tolist, list])
@pytest.mark.parametrize("levels", [4, 3, 2])
def test_points_of_several_images_may_leave_the_prompt_set_out(processor, images, levels, convert):
    index = {4: slice(None), 3: np.s_[:, 0], 2: np.s_[:, 0, 0]}[levels]
    points = np.stack([POINTS, POINTS + 1, POINTS + 2])[index]
    expected = [in_input(size, item) for size, item in zip(SIZES, points, strict=True)]
    expected = np.stack(expected)[(slice(None),) + (None,) * (4 - levels)]
    inputs = processor(images, input_points=convert(points))
    np.testing.assert_array_equal(inputs["input_points"], expected)


BOXES = np.array([[1, 2, 30, 20], [0, 0, 5.5, 6], [3, 3, 3, 3]])  # (P, 4)
BOXES_IN_INPUT = in_input(SIZES[0], BOXES)


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor, np.ndarray.tolist])
@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        (BOXES[None], BOXES_IN_INPUT[None]),  # [image][prompt set][4]
        (BOXES, BOXES_IN_INPUT[None]),  # [prompt set][4]
        (BOXES[0], BOXES_IN_INPUT[None, :1]),  # [4]
        (BOXES[None, None], BOXES_IN_INPUT[None, None]),  # [image][prompt set][box][4]
        (BOXES[None, :, None], BOXES_IN_INPUT[None]),
    ],
    ids=["image-set", "set", "box", "image-set-box", "image-set-one-box"],
)
def test_boxes_of_one_image(processor, images, boxes, expected, convert):
    inputs = processor(images[0], input_boxes=convert(boxes))
    np.testing.assert_array_equal(inputs["input_boxes"], expected)
    assert inputs["input_boxes"].dtype == np.float32


def test_boxes_of_several_images(processor, images):
    expected = np.stack([in_input(size, BOXES[0]) for size in SIZES])[:, None]
    one_each = processor(images, input_boxes=[BOXES[0].tolist()] * 3)
    np.testing.assert_array_equal(one_each["input_boxes"], expected)
    tensor = torch.tensor(BOXES[0])[None, None].expand(3, 1, 4)
    np.testing.assert_array_equal(processor(images, input_boxes=tensor)["input_boxes"], expected)


def test_labels_go_with_their_points_at_every_depth(processor, images):
    for points, labels in [
        ([[[[1, 2], [3, 4]]]], [[[1, 0]]]),
        ([[[1, 2], [3, 4]]], [[1, 0]]),
        ([[1, 2], [3, 4]], [1, 0]),
        (torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([True, False])),
    ]:
        inputs = processor(images[0], input_points=points, input_labels=labels)
        assert inputs["input_labels"].tolist() == [[[1, 0]]]
    inputs = processor(images[0], input_points=[1, 2], input_labels=-1)
    assert inputs["input_labels"].tolist() == [[[-1]]]


# ---------------------------------------------------------------------------------- batches


def test_unequal_prompts_are_filled_up_with_padding(processor, images):
    inputs = processor(
        images,
        input_points=[[[[1, 2], [3, 4], [5, 6]], [[7, 8]]], None, [[[9, 9]]]],
        input_labels=[[[1, 0, 1], [0]], None, [[1]]],
        input_boxes=[[[0, 0, 9, 9], None], [[1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7]], []],
        return_tensors="np",
    )
    points = np.full((3, 3, 3, 2), -10, np.float32)
    points[0, 0] = in_input(SIZES[0], [[1, 2], [3, 4], [5, 6]])
    points[0, 1, 0] = in_input(SIZES[0], [7, 8])
    points[2, 0, 0] = in_input(SIZES[2], [9, 9])
    np.testing.assert_array_equal(inputs["input_points"], points)
    assert inputs["input_labels"].tolist() == [
        [[1, 0, 1], [0, -10, -10], [-10, -10, -10]],
        [[-10, -10, -10]] * 3,
        [[1, -10, -10], [-10, -10, -10], [-10, -10, -10]],
    ]
    boxes = np.full((3, 3, 4), -10, np.float32)
    boxes[0, 0] = in_input(SIZES[0], [0, 0, 9, 9])
    boxes[1] = in_input(SIZES[1], [[1, 1, 5, 5], [2, 2, 6, 6], [3, 3, 7, 7]])
    np.testing.assert_array_equal(inputs["input_boxes"], boxes)


def test_several_boxes_in_some_prompt_sets(processor, images):
    inputs = processor(images[:2], input_boxes=[[[[0, 0, 9, 9], [1, 1, 5, 5]]], [[2, 2, 6, 6]]])
    boxes = np.full((2, 1, 2, 4), -10, np.float32)
    boxes[0, 0] = in_input(SIZES[0], [[0, 0, 9, 9], [1, 1, 5, 5]])
    boxes[1, 0, 0] = in_input(SIZES[1], [2, 2, 6, 6])
    np.testing.assert_array_equal(inputs["input_boxes"], boxes)


def test_the_users_own_padding_stays_padding(processor, images):
    """A batch that comes padded, as from another processor, is scaled and stays invisible."""
    boxes = np.array([[[1, 1, 5, 5], [-10, -10, -10, -10]]])
    inputs = processor(images[0], input_boxes=boxes)
    np.testing.assert_array_equal(inputs["input_boxes"][0, 1], [-10] * 4)
    inputs = processor(images[0], input_points=[[1, 2], [-10, -10]], input_labels=[1, -10])
    assert inputs["input_labels"].tolist() == [[[1, -10]]]


@pytest.mark.parametrize(
    "nothing", [None, [], [None, None, None], [[], None, [[]]], np.zeros((3, 0, 2))]
)
def test_no_prompts_give_no_entries(processor, images, nothing):
    inputs = processor(images, input_points=nothing, input_boxes=nothing, input_masks=nothing)
    assert not set(PROMPT_NAMES) & set(inputs)
    assert len(inputs["pixel_values"]) == 3


def random_logits(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("axes", [2, 3, 4, 5])
def test_masks_of_the_models_size_pass_unchanged(processor, images, axes):
    logits = random_logits(*(1, 1, 1, *MASK_SIZE)[5 - axes :])
    masks = processor(images[0], input_masks=torch.from_numpy(logits))["input_masks"]
    np.testing.assert_array_equal(masks, logits.reshape(1, 1, 1, *MASK_SIZE))
    assert masks.dtype == np.float32


def test_masks_of_the_images_size_are_scaled_and_padded(processor, images):
    logits = random_logits(2, *SIZES[0])
    masks = processor(images[0], input_masks=logits)["input_masks"]
    resizer = ImageResizer(SIZES[0], INPUT_SIZE)
    padded = resizer.pad_image(resizer.scale_image(logits, False), False)
    expected = ImageResizer.scale_to_size(padded, MASK_SIZE, channels_last=False)
    np.testing.assert_array_equal(masks, expected[None, :, None])


def test_missing_masks_are_nan_and_one_mask_serves_all(processor, images):
    logits = random_logits(3, *MASK_SIZE)
    inputs = processor(
        images,
        input_points=[[[[1, 2]], [[3, 4]]], [[[5, 6]]], None],
        input_masks=[logits[:1], None, [[logits[1], logits[2]]]],
    )
    expected = np.full((3, 2, 2, *MASK_SIZE), np.nan, np.float32)
    expected[0, :, 0] = logits[0]
    expected[2, 0] = logits[1:]
    np.testing.assert_array_equal(inputs["input_masks"], expected)


def test_prompts_alone_need_only_the_sizes(processor, images):
    prompts = {"input_points": [[[[1, 2]]], None, [[[3, 4]], [[5, 6]]]], "return_tensors": "pt"}
    with_images = processor(images, **prompts)
    alone = processor(original_sizes=torch.tensor(SIZES), **prompts)
    assert set(with_images) - set(alone) == {"pixel_values"}
    for name, value in alone.items():
        assert torch.equal(value, with_images[name])


def test_options_of_the_image_processor_move_the_prompts_too(processor, images):
    inputs = processor(images[0], input_points=[10, 20], size={"longest_edge": 32})
    expected = ImageResizer(SIZES[0], (32, 32)).scale_points([10, 20])
    np.testing.assert_array_equal(inputs["input_points"][0, 0, 0], expected)
    assert inputs["reshaped_input_sizes"] == [ImageResizer(SIZES[0], (32, 32)).rescaled_size]


def test_segmentation_maps_become_labels(processor, images):
    maps = [np.ones(size, np.uint8) for size in SIZES]
    labels = processor(images, segmentation_maps=maps, return_tensors="pt")["labels"]
    assert tuple(labels.shape) == (3, 1, *MASK_SIZE)


def model_inputs(inputs):
    return {name: inputs[name] for name in ("pixel_values", *PROMPT_NAMES) if name in inputs}


def test_masks_come_back_at_the_size_of_each_image(processor, model, images):
    inputs = processor(images, input_points=[[1, 2]] * 3, return_tensors="pt")
    with torch.no_grad():
        output = model(**model_inputs(inputs))
    masks = processor.post_process_masks(
        output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert [tuple(mask.shape) for mask in masks] == [(1, 3, *size) for size in SIZES]


def test_a_flexible_model_takes_images_that_are_hardly_padded(config, images):
    flexible = SegmentAnythingModelConfig(**{**config.to_dict(), "fixed_input_size": False})
    image_processor = SegmentAnythingImageProcessor.from_config(
        flexible, size={"longest_edge": 64}, mask_size={"longest_edge": 16}, pad_to_multiple_of=16
    )
    processor = SegmentAnythingProcessor(image_processor)
    image, mask = images[1], random_logits(1, *SIZES[1])
    inputs = processor(
        image,
        input_points=[3, 4],
        input_masks=mask,
        segmentation_maps=mask[0] > 0,
        return_tensors="pt",
    )
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 32, 64)
    assert tuple(inputs["input_masks"].shape) == (1, 1, 1, 8, 16)
    with torch.no_grad():
        output = SegmentAnythingModel(flexible).eval()(
            **model_inputs(inputs), labels=inputs["labels"]
        )
    assert torch.isfinite(output.loss)
    masks = processor.post_process_masks(output.pred_masks, inputs["original_sizes"])
    assert tuple(masks[0].shape) == (1, 3, *SIZES[1])


# -------------------------------------------------------------------------- saving and Auto


def test_saving_and_loading_keep_everything(processor, images, tmp_path):
    processor.save_pretrained(tmp_path)
    saved = processor.to_dict()
    assert "auto_map" not in saved  # where the code lies that this package does not need
    for loaded in (
        SegmentAnythingProcessor.from_pretrained(tmp_path),
        AutoProcessor.from_pretrained(tmp_path),
    ):
        assert type(loaded) is SegmentAnythingProcessor
        assert type(loaded.image_processor) is SegmentAnythingImageProcessor
        assert loaded.to_dict() == saved
        expected = processor(images, input_points=[[1, 2]] * 3, return_tensors="pt")
        result = loaded(images, input_points=[[1, 2]] * 3, return_tensors="pt")
        assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_a_repository_of_transformers_own_sam_is_read(tmp_path):
    SamProcessor(SamImageProcessorPil(size={"longest_edge": 32})).save_pretrained(tmp_path)
    loaded = SegmentAnythingProcessor.from_pretrained(tmp_path, do_normalize=False)
    assert type(loaded.image_processor) is SegmentAnythingImageProcessor
    assert loaded.image_processor.size == {"longest_edge": 32}
    assert loaded.image_processor.do_normalize is False


def test_presets_are_known_by_name():
    processor = SegmentAnythingProcessor.from_pretrained("sam_vit_t")
    config = SegmentAnythingModelConfig.from_preset("sam_vit_t")
    height, width = config.input_size
    pixels = processor(Image.new("RGB", (30, 20)))["pixel_values"]
    assert pixels[0].shape == (3, height, width)


def test_input_names_are_those_that_images_alone_give(processor, images):
    """As transformers' own processors have it, and its tests of them ask for."""
    alone = processor(images[0])
    assert set(alone) == set(processor.model_input_names)
    prompted = processor(images[0], input_points=[1, 2], input_boxes=[1, 2, 3, 4])
    assert set(prompted) == set(alone) | {"input_points", "input_labels", "input_boxes"}


def test_options_may_be_nested(processor, images):
    expected = processor(images, do_normalize=False, return_tensors="np")["pixel_values"]
    for options in (
        {"images_kwargs": {"do_normalize": False, "return_tensors": "np"}},
        {"images_kwargs": {"do_normalize": False}, "return_tensors": "np", "text_kwargs": {}},
    ):
        np.testing.assert_array_equal(processor(images, **options)["pixel_values"], expected)
    with pytest.raises(ValueError, match="passed two times"):
        processor(images, images_kwargs={"do_normalize": False}, do_normalize=True)
    with pytest.raises(TypeError, match="do_normalise"):
        processor(images, do_normalise=False)


def test_input_size_makes_a_processor_for_another_model():
    processor = SegmentAnythingProcessor.from_pretrained("sam_vit_t", input_size=(512, 256))
    config = SegmentAnythingModelConfig.from_preset("sam_vit_t", input_size=(512, 256))
    expected = SegmentAnythingImageProcessor.from_config(config)
    assert processor.image_processor.to_dict() == expected.to_dict()
    with pytest.raises(ValueError, match="input_size must be two positive integers"):
        SegmentAnythingProcessor.from_pretrained("sam_vit_t", input_size=(512, 0))


@pytest.mark.parametrize("is_saved", [False, True])
def test_fields_of_the_model_change_the_processor_alike(tmp_path, is_saved):
    source = "sam_vit_t"
    if is_saved:
        SegmentAnythingProcessor.from_pretrained(source).save_pretrained(tmp_path)
        source = tmp_path
    fields = {"input_size": (256, 128), "in_channels": 4}
    processor = SegmentAnythingProcessor.from_pretrained(source, **fields)
    config = SegmentAnythingModelConfig.from_preset("sam_vit_t", **fields)
    expected = SegmentAnythingImageProcessor.from_config(config)
    for name in ("size", "pad_size", "mask_size", "mask_pad_size", "image_mean", "image_std"):
        assert getattr(processor.image_processor, name) == getattr(expected, name)
    inputs = processor(np.zeros((60, 90, 4), np.uint8), input_points=[[[89, 59]]])
    assert np.asarray(inputs["pixel_values"]).shape == (1, 4, 256, 128)
    assert np.asarray(inputs["input_points"]).max() < 128
