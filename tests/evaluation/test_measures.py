import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage, stats

from segment_anything_transformers.evaluation.measures import (
    boundary,
    boundary_iou,
    masks_iou,
    matched_share,
    rank_correlation,
)
from segment_anything_transformers.model.mask_ops import deepest_point, next_click


def blobs(seed, size_hw=(70, 90)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(size_hw), 6)
    return noise > 0.01


def rectangle(left, top, right, bottom, size_hw=(40, 60)):
    mask = np.zeros(size_hw, bool)
    mask[top:bottom, left:right] = True
    return mask


def test_iou_of_several_masks():
    truth = rectangle(0, 0, 10, 10)
    masks = np.stack([truth, rectangle(5, 0, 15, 10), rectangle(20, 20, 30, 30), truth & False])
    np.testing.assert_allclose(masks_iou(masks, truth), [1, 50 / 150, 0, 0])
    known = ~rectangle(0, 0, 5, 40)
    np.testing.assert_allclose(masks_iou(masks, truth, known), [1, 0.5, 0, 0])
    assert masks_iou(masks[3], masks[3]) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_boundary_is_that_of_the_papers_code(seed):
    mask = blobs(seed)
    width = round(0.02 * np.hypot(*mask.shape))
    padded = np.pad(mask, 1).astype(np.uint8)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    np.testing.assert_array_equal(boundary(mask), mask & (eroded == 0))
    other = blobs(seed + 10)
    expected = masks_iou(boundary(mask), boundary(other))
    assert boundary_iou(mask, other) == pytest.approx(float(expected))
    assert not boundary(mask & False).any()


@pytest.mark.parametrize("seed", range(3))
def test_the_deepest_point_is_the_centre_of_the_largest_empty_disc(seed):
    mask = blobs(seed)
    expected = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    depth, (x, y) = deepest_point(mask)
    assert depth == expected.max() == expected[y, x]


def test_the_next_click_is_in_the_largest_error():
    truth, mask = rectangle(10, 10, 40, 30), rectangle(20, 10, 58, 30)
    (x, y), label = next_click(mask, truth)  # 10 columns are missing, 18 are too many
    assert label == 0
    assert 46 <= x <= 52
    assert 18 <= y <= 22
    (x, _), label = next_click(mask, truth, known=~rectangle(40, 0, 60, 40))
    assert label == 1
    assert 13 <= x <= 16
    first, label = next_click(truth & False, truth)
    assert label == 1
    assert truth[first[::-1]]
    second, _ = next_click(truth & False, truth, clicked=[first])
    assert second != first
    assert next_click(truth, truth) is None
    assert next_click(truth ^ rectangle(3, 3, 4, 4), truth, clicked=[(3, 3)]) is None


def test_each_proposal_finds_one_object():
    ious = np.array([[0.9, 0.8], [0.72, 0.1], [0.0, 0.62]])
    # At 0.5 to 0.9 the first finds object 0; object 1 is found by the last up to 0.6.
    np.testing.assert_allclose(matched_share(ious), [0.9, 0.3])
    np.testing.assert_allclose(matched_share(ious[:1]), [0.9, 0.0])
    np.testing.assert_allclose(matched_share(ious[:0]), [0.0, 0.0])


@pytest.mark.parametrize("seed", range(4))
def test_average_recall_is_cocos(seed):
    """Proposals that are objects and their neighbours in part: several may find the same object."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (30, 2))
    sides = rng.integers(10, 30, (30, 2))
    drawn = [
        rectangle(*corner, *(corner + side), size_hw=(90, 90))
        for corner, side in zip(corners, sides, strict=True)
    ]
    truth = drawn[:8]
    moved = [np.roll(truth[n % 8], rng.integers(-3, 4, 2), (0, 1)) for n in range(24)]
    proposals = [mask for pair in zip(moved, drawn[6:], strict=True) for mask in pair]

    def annotation(number, mask):
        lines = coco_masks.encode(np.asfortranarray(mask.astype(np.uint8)))
        shared = {"id": number, "image_id": 1, "category_id": 1, "segmentation": lines}
        return {**shared, "area": float(mask.sum()), "bbox": [0, 0, 1, 1], "iscrowd": 0}

    peer = COCO()
    peer.dataset = {
        "images": [{"id": 1, "height": 90, "width": 90}],
        "categories": [{"id": 1}],
        "annotations": [annotation(number, mask) for number, mask in enumerate(truth, 1)],
        "info": {},
    }
    peer.createIndex()
    falling = np.linspace(0.9, 0.1, len(proposals))
    answers = peer.loadRes(
        [
            {**annotation(number, mask), "score": score}
            for number, (mask, score) in enumerate(zip(proposals, falling, strict=True), 1)
        ]
    )
    evaluation = COCOeval(peer, answers, "segm")
    evaluation.params.maxDets = counts = [1, 10, 48]
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["recall"][:, 0, 0].mean(axis=0)  # all sizes
    ious = np.array([masks_iou(mask, np.stack(truth)) for mask in proposals])
    recall = [matched_share(ious[:count]).mean() for count in counts]
    np.testing.assert_allclose(recall, expected, atol=1e-12)
    assert 0 < recall[0] < recall[1] < recall[2] < 1


def test_rank_correlation_is_spearmans():
    first, second = np.random.default_rng(0).integers(0, 9, (2, 50))
    assert rank_correlation(first, second) == pytest.approx(stats.spearmanr(first, second)[0])
    assert rank_correlation(first, np.ones(50)) is None
    assert rank_correlation(first[:1], second[:1]) is None
