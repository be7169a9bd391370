"""Image processor and processor against those of transformers that need no torchvision."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.sam import image_processing_pil_sam as hf_module
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.models.sam.processing_sam import SamProcessor

from segment_anything_transformers import SegmentAnythingImageProcessor, SegmentAnythingProcessor
from segment_anything_transformers.model import mask_ops

SIZES = [
    (60, 90),  # landscape
    (90, 60),  # portrait
    (71, 71),
    (97, 53),  # odd
    (50, 1),  # one pixel wide
    (1, 60),
    (2, 3),  # tiny
    (300, 450),  # larger than the input
    (64, 64),  # as large as the input
]
OPTIONS = {
    "size": {"longest_edge": 64},
    "pad_size": {"height": 64, "width": 64},
    "mask_size": {"longest_edge": 16},
    "mask_pad_size": {"height": 16, "width": 16},
}


@pytest.fixture(scope="module")
def ours():
    return SegmentAnythingImageProcessor(**OPTIONS)


@pytest.fixture(scope="module")
def theirs():
    return SamImageProcessorPil(**OPTIONS)


def random_image(size_hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


def smooth_logits(*shape, size_hw=(16, 16), seed=0):
    coarse = np.random.default_rng(seed).normal(size=(*shape, 6, 5)).astype(np.float32)
    return torch.from_numpy(mask_ops.resize_bilinear(coarse, size_hw) * 12)


def disc_logits(*shape, size_hw, seed=0):
    """Discs anywhere, with edges from sharp to blurred."""
    rng = np.random.default_rng(seed)
    centre = rng.random((*shape, 2, 1, 1)) * np.reshape(size_hw, (2, 1, 1))
    radius, slope = rng.random((2, *shape, 1, 1)) * np.reshape(
        [25, 3], (2, *[1] * len(shape), 1, 1)
    )
    rows, columns = np.mgrid[: size_hw[0], : size_hw[1]]
    distance = np.hypot(rows - centre[..., 0, :, :], columns - centre[..., 1, :, :])
    return torch.from_numpy(((radius + 3 - distance) * slope).astype(np.float32))


def assert_equal_features(ours, theirs):
    """Every entry of theirs equals ours, in value and in dtype."""
    for name, expected in theirs.items():
        assert ours[name].dtype == expected.dtype
        np.testing.assert_array_equal(ours[name].numpy(), expected.numpy(), err_msg=name)


@pytest.mark.parametrize("size_hw", SIZES)
@pytest.mark.parametrize("kind", ["array", "pil", "channels first", "tensor"])
def test_pixels_are_equal(ours, theirs, size_hw, kind):
    image = random_image(size_hw)
    given = {
        "array": image,
        "pil": Image.fromarray(image),
        "channels first": image.transpose(2, 0, 1),
        "tensor": torch.from_numpy(image).permute(2, 0, 1),
    }[kind]
    # theirs cannot tell an image of three rows from channels
    layout = {"input_data_format": "channels_last"} if kind == "array" else {}
    layout = layout if kind in ("array", "pil") else {"input_data_format": "channels_first"}
    assert_equal_features(
        ours(given, return_tensors="pt", **layout), theirs(given, return_tensors="pt", **layout)
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_pixels_of_other_pil_modes_are_equal(ours, theirs, mode):
    image = Image.fromarray(random_image((60, 90))).convert(mode)
    assert_equal_features(ours(image, return_tensors="pt"), theirs(image, return_tensors="pt"))


def test_a_batch_with_maps_is_equal_except_for_the_axis_of_prompt_sets(ours, theirs):
    # a map of one pixel's width is one of none to theirs, which then fails
    images = [random_image(size) for size in SIZES if 1 not in size]
    maps = [(image[..., 0] > 128).astype(np.uint8) for image in images]
    ours_batch = ours(images, segmentation_maps=maps, return_tensors="pt")
    theirs_batch = theirs(images, segmentation_maps=maps, return_tensors="pt")
    ours_batch["labels"] = ours_batch["labels"][:, 0]
    assert_equal_features(ours_batch, theirs_batch)


@pytest.mark.parametrize("size_hw", [(60, 90), (97, 53), (1, 60), (1200, 1800)])
def test_full_size_pixels_and_coordinates_are_equal(size_hw):
    """With the defaults: 1024 pixels."""
    height, width = size_hw
    points = [[[10.5, min(20.25, height)], [3, 0]]]
    boxes = np.minimum([[[1, 2, 30.5, 40], [0, 0, 7, 9]]], [width, height, width, height]).tolist()
    image = Image.fromarray(random_image(size_hw))
    ours = SegmentAnythingProcessor(SegmentAnythingImageProcessor())
    theirs = SamProcessor(SamImageProcessorPil())
    prompts = {"input_points": points, "input_labels": [[1, 0]], "return_tensors": "pt"}
    ours_points, theirs_points = ours(image, **prompts), theirs(image, **prompts)
    theirs_points["input_points"] = theirs_points["input_points"].float()  # theirs are float64
    assert_equal_features(ours_points, theirs_points)
    ours_boxes = ours(image, input_boxes=boxes, return_tensors="pt")
    theirs_boxes = theirs(image, input_boxes=boxes, return_tensors="pt")
    theirs_boxes["input_boxes"] = theirs_boxes["input_boxes"].float()
    assert_equal_features(ours_boxes, theirs_boxes)


@pytest.mark.parametrize("mask_hw", [(16, 16), (64, 64), (7, 11)])
@pytest.mark.parametrize("size_hw", SIZES)
def test_masks_come_back_equal(ours, theirs, size_hw, mask_hw):
    logits = smooth_logits(1, 2, 3, size_hw=mask_hw)
    reshaped = ours.geometry().image_resizer(size_hw).rescaled_size
    arguments = {"original_sizes": [size_hw], "reshaped_input_sizes": [reshaped]}
    expected = theirs.post_process_masks([logits[0]], binarize=False, **arguments)
    result = ours.post_process_masks(logits, binarize=False, **arguments)
    torch.testing.assert_close(result[0], expected[0], rtol=0, atol=2e-5)
    without_sizes = ours.post_process_masks(logits.numpy(), [size_hw], binarize=False)
    np.testing.assert_allclose(without_sizes[0], expected[0].numpy(), rtol=0, atol=2e-5)
    expected_masks = theirs.post_process_masks([logits[0]], mask_threshold=0.5, **arguments)
    masks = ours.post_process_masks(logits, mask_threshold=0.5, **arguments)
    undecided = (expected[0] - 0.5).abs() < 2e-5
    assert ((masks[0] == expected_masks[0]) | undecided).all()


def test_masks_of_another_padded_size_come_back_equal(ours, theirs):
    logits = smooth_logits(1, 2, 3)
    arguments = {
        "original_sizes": torch.tensor([[60, 90]]),
        "reshaped_input_sizes": torch.tensor([[20, 30]]),
        "pad_size": {"height": 32, "width": 48},
        "binarize": False,
    }
    expected = theirs.post_process_masks([logits[0]], **arguments)
    result = ours.post_process_masks(logits, **arguments)
    torch.testing.assert_close(result[0], expected[0], rtol=0, atol=2e-5)


def assert_equal_filtered(ours, theirs):
    assert [mask_ops.rle_with_list(rle) for rle in ours[0]] == theirs[0]
    for result, expected in zip(ours[1:], theirs[1:], strict=True):
        assert result.dtype == expected.dtype
        assert torch.equal(result, expected)


@pytest.mark.parametrize("crop_box", [(0, 0, 120, 100), (0, 0, 80, 70), (40, 30, 120, 100)])
@pytest.mark.parametrize(
    "thresholds", [{}, {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.5}]
)
def test_filtered_masks_are_equal(ours, theirs, crop_box, thresholds):
    size_hw = (crop_box[3] - crop_box[1], crop_box[2] - crop_box[0])
    logits = disc_logits(80, 3, size_hw=size_hw)
    logits[3] = -9  # no pixel in the mask
    logits[4] = 9  # all of them
    scores = torch.rand(80, 3, generator=torch.Generator().manual_seed(0)) / 4 + 0.75
    arguments = (scores, (100, 120), torch.tensor(crop_box))
    expected = theirs.filter_masks(logits.clone(), *arguments, **thresholds)
    result = ours.filter_masks(logits, *arguments, **thresholds)
    assert 0 < len(result[0]) < 240
    assert_equal_filtered(result, expected)
    without_torch = ours.filter_masks(
        logits.numpy(), scores.numpy(), (100, 120), np.array(crop_box), **thresholds
    )
    assert [mask_ops.rle_with_list(rle) for rle in without_torch[0]] == expected[0]
    np.testing.assert_array_equal(without_torch[1], expected[1].numpy())
    np.testing.assert_array_equal(without_torch[2], expected[2].numpy())


def plain_batched_nms(boxes, scores, idxs, iou_threshold):
    """What torchvision's does for a single category, straight from the definition."""
    order = scores.argsort(descending=True, stable=True).tolist()
    keep = []
    for index in order:
        left_top = torch.maximum(boxes[index, :2], boxes[keep, :2])
        right_bottom = torch.minimum(boxes[index, 2:], boxes[keep, 2:])
        intersection = (right_bottom - left_top).clamp(min=0).prod(-1)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        union = areas[index] + areas[keep] - intersection
        if not (intersection / union > iou_threshold).any():
            keep.append(index)
    return torch.tensor(keep, dtype=torch.long)


@pytest.mark.parametrize("iou_threshold", [0.3, 0.7])
def test_masks_without_duplicates_are_equal(ours, theirs, monkeypatch, iou_threshold):
    logits = disc_logits(200, 1, size_hw=(100, 120))
    scores = torch.rand(200, 1, generator=torch.Generator().manual_seed(0))
    filtered = ours.filter_masks(logits, scores, (100, 120), (0, 0, 120, 100), 0.0, 0.0)
    rles = [mask_ops.rle_with_list(rle) for rle in filtered[0]]
    expected = _their_joined_masks(monkeypatch, (rles, *filtered[1:]), iou_threshold)
    result = ours.post_process_for_mask_generation(*filtered, iou_threshold)
    assert 1 < len(result[0]) < 200
    for mask, expected_mask in zip(result[0], expected[0], strict=True):
        np.testing.assert_array_equal(mask, expected_mask)
    assert_equal_filtered(
        (result[2], result[1], result[3]), (expected[2], expected[1], expected[3])
    )


def _their_joined_masks(monkeypatch, filtered, iou_threshold):
    boxes_module = ModuleType("torchvision.ops.boxes")
    boxes_module.batched_nms = plain_batched_nms
    for name in ("torchvision", "torchvision.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, boxes_module.__name__, boxes_module)
    return hf_module._post_process_for_mask_generation(*filtered, iou_threshold)


@pytest.mark.parametrize("size_hw", [(60, 90), (97, 53), (300, 450)])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crops_and_grids_are_equal(ours, theirs, size_hw, layers):
    image = Image.fromarray(random_image(size_hw))
    arguments = (64, layers, 512 / 1500, 8, 1)
    expected = theirs.generate_crop_boxes(image, *arguments)
    boxes, points, crops, labels = ours.generate_crop_boxes(image, *arguments)
    np.testing.assert_array_equal(boxes.numpy(), expected[0].numpy())
    np.testing.assert_array_equal(points.numpy(), expected[1].float().numpy())
    np.testing.assert_array_equal(labels.numpy(), expected[3].numpy())
    assert len(crops) == len(expected[2])
    for crop, expected_crop in zip(crops, expected[2], strict=True):
        np.testing.assert_array_equal(crop.transpose(2, 0, 1), expected_crop)


def test_their_configuration_file_is_read(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    loaded = SegmentAnythingImageProcessor.from_pretrained(tmp_path)
    assert loaded.geometry() == SegmentAnythingImageProcessor(**OPTIONS).geometry()
    image = random_image((60, 90))
    assert_equal_features(loaded(image, return_tensors="pt"), theirs(image, return_tensors="pt"))
