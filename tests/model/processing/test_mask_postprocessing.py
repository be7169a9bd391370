import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers import ImageResizer, SegmentAnythingImageProcessor
from segment_anything_transformers.model import mask_ops
from tests.model.processing.inputs import random_image


def smooth_logits(*shape, seed=0):
    coarse = np.random.default_rng(seed).normal(size=(*shape, 6, 5)).astype(np.float32)
    return mask_ops.resize_bilinear(coarse, (24, 16)) * 4


def test_masks_come_back_as_what_was_given(image_processor):
    logits, sizes = smooth_logits(2, 1, 3), [(50, 40), (30, 70)]
    arrays = image_processor.post_process_masks(logits, sizes)
    assert [mask.shape for mask in arrays] == [(1, 3, 50, 40), (1, 3, 30, 70)]
    assert all(mask.dtype == np.bool_ for mask in arrays)
    tensors = image_processor.post_process_masks(
        torch.from_numpy(logits).to(torch.bfloat16).requires_grad_(), torch.tensor(sizes)
    )
    assert all(mask.dtype == torch.bool for mask in tensors)
    listed = image_processor.post_process_masks(list(logits), sizes, binarize=False)
    assert all(mask.dtype == np.float32 for mask in listed)
    for mask, mask_logits in zip(arrays, listed, strict=True):
        np.testing.assert_array_equal(mask, mask_logits > 0)


def test_the_threshold_is_used(image_processor):
    logits = smooth_logits(1, 3)
    raw = image_processor.post_process_masks(logits, [(50, 40)], binarize=False)[0]
    masks = image_processor.post_process_masks(logits, [(50, 40)], mask_threshold=1.5)[0]
    np.testing.assert_array_equal(masks, raw > 1.5)


def test_sizes_and_masks_have_to_agree(image_processor):
    with pytest.raises(ValueError, match=r"one entry an image .* got 2, 1 and 1"):
        image_processor.post_process_masks(smooth_logits(2, 1), [(50, 40)])


@pytest.mark.parametrize("as_tensor", [False, True])
def test_small_holes_and_islands_go_and_the_rest_stays(image_processor, as_tensor):
    logits = np.full((1, 1, 24, 16), -3.0, np.float32)
    logits[0, 0, 2:14, 2:14] = 3
    logits[0, 0, 5:7, 5:7] = -3  # a hole
    logits[0, 0, 20, 8] = 3  # an island
    sizes = [(24, 16)]
    given = torch.from_numpy(logits) if as_tensor else logits
    before = image_processor.post_process_masks(logits, sizes, binarize=False)[0][0]
    after = image_processor.post_process_masks(
        given, sizes, binarize=False, max_hole_area=10, max_sprinkle_area=10
    )[0][0]
    assert isinstance(after, torch.Tensor) == as_tensor
    after = np.asarray(after)
    changed = (before > 0) != (after > 0)
    expected = np.zeros((24, 16), bool)
    expected[5:7, 5:7] = expected[20, 8] = True
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(after[~changed], before[~changed])
    np.testing.assert_array_equal(after[changed], -before[changed])
    kept = image_processor.post_process_masks(given, sizes, binarize=False, max_hole_area=3)[0][0]
    np.testing.assert_array_equal(np.asarray(kept), before)


@pytest.mark.parametrize("size", [(50, 40), (24, 16)])
def test_masks_that_are_processed_already_are_not_resized_again(image_processor, size):
    """The stock pipeline passes them in twice when holes are to be filled."""
    once = image_processor.post_process_masks(smooth_logits(1, 3), [size], binarize=False)
    twice = image_processor.post_process_masks(once, [size], binarize=False)
    np.testing.assert_array_equal(once[0], twice[0])
    np.testing.assert_array_equal(image_processor.post_process_masks(once, [size])[0], once[0] > 0)


def test_filtering_keeps_what_meets_every_condition(image_processor):
    logits = np.full((2, 3, 70, 80), -9.0, np.float32)
    logits[:, :, 31:38, 42:47] = 9
    logits[0, 1, 31:34, 42:47] = 0.5  # unstable
    logits[1, 0, 15:20, 42:47] = 9  # near the upper edge of the crop
    scores = np.array([[0.9, 0.95, 0.5], [0.97, 0.96, 0.89]], np.float32)
    rles, kept_scores, boxes = image_processor.filter_masks(
        logits, scores, (200, 300), (100, 90, 180, 160)
    )
    assert kept_scores.tolist() == scores[[0, 1, 1], [0, 1, 2]].tolist()
    assert boxes.tolist() == [[142, 121, 146, 127]] * 3
    assert boxes.dtype == np.int64
    expected = np.zeros((200, 300), bool)
    expected[121:128, 142:147] = True
    for rle in rles:
        np.testing.assert_array_equal(mask_ops.rle_to_mask(rle), expected)
    everything = image_processor.filter_masks(
        logits, scores, (70, 80), (0, 0, 80, 70), pred_iou_thresh=0, stability_score_thresh=0
    )
    assert len(everything[0]) == 6


def test_no_mask_at_all_can_be_filtered_and_joined(image_processor):
    logits, scores = torch.full((1, 3, 20, 30), -1.0), torch.zeros(1, 3)
    rles, scores, boxes = image_processor.filter_masks(logits, scores, (20, 30), (0, 0, 30, 20))
    assert rles == []
    assert tuple(scores.shape) == (0,)
    assert tuple(boxes.shape) == (0, 4)
    masks, scores, rles, boxes = image_processor.post_process_for_mask_generation(
        rles, scores, boxes, 0.7
    )
    assert masks == rles == []


def test_scores_without_their_masks_are_refused(image_processor):
    with pytest.raises(ValueError, match=r"one score for each mask, got 4 scores, 3 masks"):
        image_processor.filter_masks(np.zeros((1, 3, 4, 5)), np.zeros((1, 4)), (4, 5), (0, 0, 5, 4))


def test_crops_with_smaller_grids_are_filled_up_with_their_last_point(image_processor):
    """Stock SAM stacks grids of unequal lengths and fails (transformers issue 35530)."""
    image = random_image(80, 120)
    boxes, points, crops, labels = image_processor.generate_crop_boxes(
        image, 96, 1, 0.25, 4, 2, return_tensors="np"
    )
    assert boxes.shape == (5, 4)
    assert points.shape == (1, 16, 5, 2)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(labels, np.ones((1, 16, 5)))
    for index, (left, top, right, bottom) in enumerate(boxes):
        np.testing.assert_array_equal(crops[index], image[top:bottom, left:right])
        size = (bottom - top, right - left)
        grid = mask_ops.point_grid(2 if index else 4) * size[::-1]
        expected = ImageResizer(size, (96, 64)).scale_points(grid)
        np.testing.assert_array_equal(points[0, : len(grid), index], expected)
        filling = points[0, len(grid) :, index]
        np.testing.assert_array_equal(filling, np.tile(expected[-1:], (len(filling), 1)))


def test_crops_are_tensors_for_the_pipeline(image_processor):
    boxes, points, _, labels = image_processor.generate_crop_boxes(
        Image.fromarray(random_image(80, 120)), device="cpu"
    )
    assert boxes.tolist() == [[0, 0, 120, 80]]
    assert points.dtype == torch.float32
    assert tuple(labels.shape) == (1, 1024, 1)
    assert labels.dtype == torch.int64


def test_another_target_size_moves_the_points(image_processor):
    image = random_image(80, 120)
    usual = image_processor.generate_crop_boxes(image, return_tensors="np")[1]
    half = image_processor.generate_crop_boxes(image, 32, return_tensors="np")[1]
    np.testing.assert_allclose(half[..., 0], usual[..., 0] / 2, rtol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 4])
def test_narrow_crops_are_read_with_the_right_axes(image_processor, width):
    image = random_image(30, width)
    _, _, crops, _ = image_processor.generate_crop_boxes(image)
    assert image_processor(crops)["original_sizes"] == [(30, width)]


def test_masks_of_an_input_that_is_hardly_padded(config):
    image_processor = SegmentAnythingImageProcessor.from_config(
        config, size={"longest_edge": 64}, pad_to_multiple_of=16, mask_size={"longest_edge": 16}
    )
    inputs = image_processor(random_image(30, 64), return_tensors="np")
    logits = np.random.default_rng(0).normal(size=(1, 2, 8, 16)).astype(np.float32)
    masks = image_processor.post_process_masks(
        logits, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
    )
    expected = mask_ops.resize_bilinear(
        mask_ops.resize_bilinear(logits, (32, 64))[..., :30, :], (30, 64)
    )
    np.testing.assert_allclose(masks[0], expected[0], rtol=0, atol=1e-5)
