import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from segment_anything_transformers.model import mask_ops


@pytest.fixture(scope="module")
def meta_amg():
    """Meta's helper functions; its package itself cannot be imported without torchvision."""
    package = importlib.util.find_spec("segment_anything")
    path = Path(package.origin).parent / "utils" / "amg.py"
    spec = importlib.util.spec_from_file_location("meta_amg", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_masks(count=12, size_hw=(37, 53), seed=0):
    """Smooth blobs with holes and islands, and among them an empty and a full mask."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 7, 9)).astype(np.float32)
    masks = mask_ops.resize_bilinear(coarse, size_hw) > 0.2
    masks[0] = False
    masks[1] = True
    return masks


@pytest.mark.parametrize(
    ("source_hw", "target_hw"),
    [
        ((64, 64), (256, 256)),
        ((256, 171), (300, 200)),
        ((123, 45), (17, 90)),
        ((5, 7), (5, 11)),
        ((1, 1), (3, 4)),
        ((9, 4), (1, 1)),
    ],
)
@pytest.mark.parametrize("leading", [(), (2,), (2, 3)])
def test_resize_bilinear_equals_torch(source_hw, target_hw, leading):
    array = np.random.default_rng(0).normal(size=(*leading, *source_hw)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(array).reshape(-1, 1, *source_hw), target_hw, mode="bilinear"
    ).reshape(*leading, *target_hw)
    resized = mask_ops.resize_bilinear(array, target_hw)
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, expected.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("source", "target"), [(256, 1024), (1024, 1801), (683, 97), (1, 5)])
def test_bilinear_matrix_has_torchs_very_weights(source, target):
    identity = torch.eye(source)[None, None]
    expected = torch.nn.functional.interpolate(identity, (target, source), mode="bilinear")
    np.testing.assert_array_equal(mask_ops.bilinear_matrix(source, target), expected[0, 0].numpy())


def test_bilinear_matrix_is_read_only():
    with pytest.raises(ValueError, match="read-only"):
        mask_ops.bilinear_matrix(4, 8)[0, 0] = 1


def test_resize_to_the_same_size_changes_nothing():
    array = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    np.testing.assert_array_equal(mask_ops.resize_bilinear(array, (6, 8)), array)


def test_resize_makes_numbers_of_a_boolean_mask():
    mask = np.array([[False, True]])
    np.testing.assert_array_equal(mask_ops.resize_bilinear(mask, (1, 4)), [[0, 0.25, 0.75, 1]])


def test_resize_refuses_an_array_without_two_axes():
    with pytest.raises(ValueError, match=r"\(\.\.\., H, W\), got shape \(5,\)"):
        mask_ops.resize_bilinear(np.zeros(5), (2, 2))


def test_resize_refuses_an_empty_size():
    with pytest.raises(ValueError, match="at least 1, got 4 and 0"):
        mask_ops.resize_bilinear(np.zeros((4, 4)), (0, 2))


@pytest.mark.parametrize("leading", [(12,), (3, 4), (2, 3, 2)])
def test_boxes_equal_metas(meta_amg, leading):
    masks = random_masks().reshape(*leading, 37, 53)
    boxes = mask_ops.masks_to_boxes(masks)
    assert boxes.dtype == np.int64
    expected = meta_amg.batched_mask_to_box(torch.from_numpy(masks))
    np.testing.assert_array_equal(boxes, expected.numpy())


def test_box_of_one_mask_without_leading_axes():
    mask = np.zeros((5, 8), bool)
    mask[1:4, 2:7] = True
    assert mask_ops.masks_to_boxes(mask).tolist() == [2, 1, 6, 3]


def test_boxes_of_no_masks():
    assert mask_ops.masks_to_boxes(np.zeros((0, 5, 8), bool)).shape == (0, 4)
    assert mask_ops.masks_to_boxes(np.zeros((2, 0, 8), bool)).tolist() == [[0] * 4] * 2


def test_stability_scores_equal_metas(meta_amg):
    logits = np.random.default_rng(1).normal(size=(3, 4, 37, 53)).astype(np.float32) * 2
    expected = meta_amg.calculate_stability_score(torch.from_numpy(logits), 0.1, 0.7)
    scores = mask_ops.stability_scores(logits, 0.1, 0.7)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, expected.numpy())


def test_stability_of_a_mask_without_pixels_is_zero():
    assert mask_ops.stability_scores(np.full((1, 4, 4), -9.0), 0.0, 1.0).tolist() == [0.0]


def random_boxes(count, seed):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, size=(count, 2, 2))
    return np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1)


def as_xywh(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)


def test_box_iou_equals_pycocotools():
    boxes_a, boxes_b = random_boxes(30, 0), random_boxes(20, 1)
    expected = coco.iou(as_xywh(boxes_a), as_xywh(boxes_b), [False] * 20)
    np.testing.assert_allclose(mask_ops.box_iou(boxes_a, boxes_b), expected, rtol=0, atol=1e-6)


def test_box_iou_without_any_area_is_zero():
    assert mask_ops.box_iou(np.zeros((1, 4)), np.zeros((2, 4))).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("iou_threshold", [0.31, 0.51, 0.71])
@pytest.mark.parametrize("score_levels", [4, 10_000])
def test_nms_equals_opencvs(iou_threshold, score_levels):
    boxes = random_boxes(200, seed=3)
    scores = np.random.default_rng(4).integers(1, score_levels + 1, size=200) / score_levels
    expected = cv2.dnn.NMSBoxes(as_xywh(boxes).tolist(), scores.tolist(), 0.0, iou_threshold)
    keep = mask_ops.nms(boxes, scores, iou_threshold)
    assert keep.dtype == np.int64
    assert keep.tolist() == np.asarray(expected).tolist()


def test_nms_keeps_a_box_that_overlaps_exactly_as_much_as_allowed():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 7]])  # IoU 0.7, and float32(0.7) < 0.7
    assert mask_ops.nms(boxes, np.array([0.2, 0.9]), 0.7).tolist() == [1, 0]
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6]])  # IoU 0.6, and float32(0.6) > 0.6
    assert mask_ops.nms(boxes, np.array([0.2, 0.9]), 0.6).tolist() == [1]


def test_nms_of_nothing():
    assert mask_ops.nms(np.zeros((0, 4)), np.zeros(0), 0.5).tolist() == []


def test_nms_wants_one_score_a_box():
    with pytest.raises(ValueError, match=r"each of 2 boxes, got \(3,\)"):
        mask_ops.nms(np.zeros((2, 4)), np.zeros(3), 0.5)


def test_run_lengths_equal_metas(meta_amg):
    masks = random_masks()
    assert mask_ops.masks_to_rles(masks) == meta_amg.mask_to_rle_pytorch(torch.from_numpy(masks))


def test_run_lengths_lead_back_to_the_mask():
    masks = random_masks()
    for mask, rle in zip(masks, mask_ops.masks_to_rles(masks), strict=True):
        decoded = mask_ops.rle_to_mask(rle)
        assert decoded.dtype == bool
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, mask)
        assert mask_ops.rle_area(rle) == mask.sum()


def test_compressed_run_lengths_equal_pycocotools():
    masks = random_masks()
    masks = np.concatenate([masks, np.random.default_rng(0).random((3, 37, 53)) > 0.5])
    for mask, rle in zip(masks, mask_ops.masks_to_rles(masks), strict=True):
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        compressed = mask_ops.rle_to_coco(rle)
        assert compressed["size"] == expected["size"]
        assert compressed["counts"] == expected["counts"].decode()
        for form in (expected, compressed):  # bytes, str
            np.testing.assert_array_equal(mask_ops.rle_to_mask(form), mask)
            assert mask_ops.rle_area(form) == mask.sum()
            assert mask_ops.rle_to_coco(form) == compressed


def test_compressed_run_lengths_hold_large_images():
    mask = np.zeros((1, 3000, 4000), bool)
    mask[0, 1500:1700, 10:3990] = True
    (rle,) = mask_ops.masks_to_rles(mask)
    expected = coco.encode(np.asfortranarray(mask[0].astype(np.uint8)))["counts"].decode()
    assert mask_ops.rle_to_coco(rle)["counts"] == expected
    np.testing.assert_array_equal(mask_ops.rle_to_mask(mask_ops.rle_to_coco(rle)), mask[0])


@pytest.mark.parametrize("counts", [[3, 2], [1, -1, 6], [7]])
def test_run_lengths_that_do_not_fill_the_mask_are_refused(counts):
    with pytest.raises(ValueError, match=r"add up to 2 x 3 pixels, got a sum of \d"):
        mask_ops.rle_to_mask({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize("points_per_side", [1, 2, 7, 32])
def test_point_grid_equals_metas(meta_amg, points_per_side):
    expected = meta_amg.build_point_grid(points_per_side)
    np.testing.assert_array_equal(mask_ops.point_grid(points_per_side), expected)


@pytest.mark.parametrize(("n_layers", "factor"), [(0, 1), (2, 2), (3, 1)])
def test_point_grids_equal_metas(meta_amg, n_layers, factor):
    expected = meta_amg.build_all_layer_point_grids(9, n_layers, factor)
    grids = mask_ops.point_grids(9, n_layers, factor)
    assert len(grids) == len(expected)
    for grid, expected_grid in zip(grids, expected, strict=True):
        np.testing.assert_array_equal(grid, expected_grid)


def test_a_layer_without_points_is_refused():
    with pytest.raises(ValueError, match="at least 1 point a side, got 0"):
        mask_ops.point_grids(4, 3, 2)


@pytest.mark.parametrize("size_hw", [(480, 640), (1333, 800), (131, 97)])
@pytest.mark.parametrize("n_layers", [0, 1, 3])
@pytest.mark.parametrize("overlap_ratio", [512 / 1500, 0.1])
def test_crop_boxes_equal_metas(meta_amg, size_hw, n_layers, overlap_ratio):
    expected_boxes, expected_layers = meta_amg.generate_crop_boxes(size_hw, n_layers, overlap_ratio)
    boxes, layers = mask_ops.crop_boxes(size_hw, n_layers, overlap_ratio)
    assert boxes.tolist() == expected_boxes
    assert layers.tolist() == expected_layers


def test_no_crop_is_empty_however_small_the_image():
    boxes, layers = mask_ops.crop_boxes((1, 3), 2, 0.3)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(layers) == len(boxes)


@pytest.mark.parametrize("tolerance", [20.0, 0.0])
def test_boxes_that_an_edge_cuts_equal_metas(meta_amg, tolerance):
    size_hw, crop_box = (90, 140), [30, 0, 100, 80]
    boxes = random_boxes(100, 7) + np.array([0, 0, 10, 20])
    expected = meta_amg.is_box_near_crop_edge(
        torch.from_numpy(boxes), crop_box, [0, 0, 140, 90], atol=tolerance
    ).numpy()
    assert expected.any()
    assert not expected.all()
    cut = mask_ops.cut_sides(boxes + np.array([30, 0, 30, 0]), crop_box, size_hw, tolerance)
    np.testing.assert_array_equal(cut.any(axis=1), expected)


def test_sides_that_an_edge_cuts():
    crop, size_hw = [100, 0, 300, 200], (400, 300)
    boxes = np.array([[110, 50, 200, 150], [150, 5, 290, 179], [150, 50, 200, 181]])
    left, top, right, bottom = mask_ops.cut_sides(boxes, crop, size_hw).T.tolist()
    assert left == [True, False, False]
    assert top == right == [False] * 3  # edges of the image
    assert bottom == [False, False, True]


@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("area_threshold", [1, 25, 100, 10_000])
def test_small_regions_equal_metas(meta_amg, mode, area_threshold):
    for mask in random_masks(count=20, seed=5):
        expected_mask, expected_changed = meta_amg.remove_small_regions(mask, area_threshold, mode)
        cleaned, changed = mask_ops.remove_small_regions(mask, area_threshold, mode)
        assert changed == expected_changed
        np.testing.assert_array_equal(cleaned, expected_mask)


def test_regions_that_touch_at_a_corner_are_one():
    mask = np.eye(6, dtype=bool)
    assert not mask_ops.remove_small_regions(mask, 6, "islands")[1]


def test_small_regions_has_two_modes():
    with pytest.raises(ValueError, match='"holes" or "islands", got \'hole\''):
        mask_ops.remove_small_regions(np.ones((3, 3), bool), 1, "hole")


def test_small_regions_says_what_to_install(monkeypatch):
    monkeypatch.setattr(mask_ops, "ndimage", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        mask_ops.remove_small_regions(np.ones((3, 3), bool), 1, "holes")
