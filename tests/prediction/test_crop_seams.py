"""Masks that edges of crops cut, put together: against masks that were never cut."""

import numpy as np
import pytest

from segment_anything_transformers.model.mask_ops import (
    crop_boxes,
    masks_to_boxes,
    masks_to_rles,
    rle_area,
    rle_to_mask,
    rle_with_list,
)
from segment_anything_transformers.prediction.crop_seams import (
    box_rle,
    by_cut,
    merge_cut_masks,
    overlap,
    union,
)
from segment_anything_transformers.prediction.found_masks import FoundMasks
from segment_anything_transformers.prediction.mask_generator import SAMAutomaticMaskGenerator
from tests.fake_backend import ColourBackend, small_config

SIZE_HW = (400, 600)
CROPS = crop_boxes(SIZE_HW, 1, 512 / 1500)[0][1:]
TOP_LEFT, BOTTOM_LEFT, TOP_RIGHT, BOTTOM_RIGHT = range(4)


def box_mask(left, top, right, bottom):
    mask = np.zeros(SIZE_HW, bool)
    mask[top:bottom, left:right] = True
    return mask


def disc(x, y, radius):
    rows, columns = np.ogrid[: SIZE_HW[0], : SIZE_HW[1]]
    return (columns - x) ** 2 + (rows - y) ** 2 < radius**2


def pieces(*masks_and_crops):
    """What crops show of masks; the clicks, and the scores, tell them apart."""
    count = len(masks_and_crops)
    crops = CROPS[[crop for _, crop in masks_and_crops]]
    seen = np.stack(
        [mask & box_mask(*box) for (mask, _), box in zip(masks_and_crops, crops, strict=True)]
    )
    rles = np.fromiter(masks_to_rles(seen), object, count)
    scores = np.linspace(0.9, 0.8, count, dtype=np.float32)
    clicks = np.arange(2.0 * count).reshape(count, 2)
    return FoundMasks(rles, masks_to_boxes(seen), scores, scores[::-1] - 0.1, clicks, crops)


def in_lists(rles):
    return [rle_with_list(rle) for rle in rles]


# ---- run lengths


def random_masks(seed=0):
    """Speckles, stripes down whole columns, nothing, and everything."""
    rng = np.random.default_rng(seed)
    stripes = np.repeat(rng.random((1, 9)) < 0.5, 7, axis=0)
    return [*(rng.random((6, 7, 9)) < 0.4), stripes, np.zeros((7, 9), bool), np.ones((7, 9), bool)]


def test_overlap_counts_shared_pixels():
    masks = random_masks()
    rles = masks_to_rles(np.stack(masks))
    for mask, rle in zip(masks, rles, strict=True):
        for other, other_rle in zip(masks, rles, strict=True):
            assert overlap(rle, other_rle) == (mask & other).sum()


def test_union_is_that_of_the_pixels():
    masks = np.stack(random_masks())
    rles = masks_to_rles(masks)
    for index in range(len(masks)):
        for some in ([index], [index, 0], [index, 3, 7], [index, *range(6)]):
            assert in_lists([union([rles[i] for i in some])]) == masks_to_rles(
                masks[some].any(0)[None]
            )


@pytest.mark.parametrize(
    "box", [(0, 0, 9, 7), (2, 3, 5, 6), (2, 0, 5, 7), (8, 6, 9, 7), (4, 4, 4, 6)]
)
def test_run_lengths_of_a_box(box):
    left, top, right, bottom = box
    mask = np.zeros((7, 9), bool)
    mask[top:bottom, left:right] = True
    assert in_lists([box_rle(box, (7, 9))]) == masks_to_rles(mask[None])


# ---- pieces


def test_the_crops_of_these_tests():
    assert CROPS.tolist() == [
        [0, 0, 368, 268],
        [0, 132, 368, 400],
        [232, 0, 600, 268],
        [232, 132, 600, 400],
    ]


def test_whole_masks_stay_and_cut_ones_go():
    inside, cut = box_mask(20, 30, 300, 200), box_mask(20, 30, 590, 200)
    masks = pieces((inside, TOP_LEFT), (cut, TOP_LEFT))
    whole, rest = by_cut(masks, SIZE_HW)
    assert (whole.points.tolist(), rest.points.tolist()) == ([[0, 1]], [[2, 3]])
    merged = merge_cut_masks(masks, SIZE_HW)
    assert in_lists(merged.rles) == in_lists(whole.rles)


def test_two_pieces_become_the_object():
    bar = box_mask(100, 40, 590, 90)
    merged = merge_cut_masks(pieces((bar, TOP_LEFT), (bar, TOP_RIGHT)), SIZE_HW)
    assert in_lists(merged.rles) == masks_to_rles(bar[None])
    np.testing.assert_array_equal(merged.boxes, masks_to_boxes(bar[None]))
    np.testing.assert_array_equal(merged.crop_boxes, [[0, 0, 600, 268]])
    np.testing.assert_array_equal(merged.points, [[2, 3]])  # the right piece is the larger one
    np.testing.assert_allclose(merged.iou_scores, [0.8])
    np.testing.assert_allclose(merged.stability_scores, [0.7])


@pytest.mark.parametrize("mask", [disc(300, 200, 150), box_mask(60, 60, 560, 350)])
def test_four_pieces_become_the_object(mask):
    merged = merge_cut_masks(pieces(*((mask, crop) for crop in range(4))), SIZE_HW)
    assert in_lists(merged.rles) == masks_to_rles(mask[None])
    np.testing.assert_array_equal(merged.crop_boxes, [[0, 0, 600, 400]])


def test_an_object_that_is_still_cut_is_left_out():
    mask = disc(300, 200, 150)
    masks = pieces(*((mask, crop) for crop in (TOP_LEFT, BOTTOM_LEFT, TOP_RIGHT)))
    assert len(merge_cut_masks(masks, SIZE_HW).rles) == 0


def test_pieces_that_disagree_are_not_joined():
    upper, lower = box_mask(100, 40, 590, 90), box_mask(100, 70, 590, 120)
    assert len(merge_cut_masks(pieces((upper, TOP_LEFT), (lower, TOP_RIGHT)), SIZE_HW).rles) == 0


def test_a_mask_that_is_cut_elsewhere_does_not_join_a_whole_one():
    whole, leg = box_mask(260, 40, 590, 90), box_mask(260, 90, 300, 400)
    masks = pieces((whole | leg, TOP_LEFT), (whole, TOP_RIGHT))
    assert in_lists(merge_cut_masks(masks, SIZE_HW).rles) == masks_to_rles(whole[None])


def test_a_cut_edge_that_no_other_piece_shows_is_none():
    bar = box_mask(100, 40, 590, 90)
    gap = box_mask(230, 40, 256, 90)  # from the edge of the right crop on
    masks = pieces((bar & ~gap, TOP_LEFT), (bar, TOP_RIGHT))
    assert len(merge_cut_masks(masks, SIZE_HW).rles) == 0


def test_of_two_pieces_of_one_crop_the_one_that_agrees_better_is_taken():
    bar = box_mask(100, 40, 590, 90)
    wider = bar | box_mask(100, 90, 590, 100)
    masks = pieces((wider, TOP_LEFT), (bar, TOP_LEFT), (bar, TOP_RIGHT))
    assert in_lists(merge_cut_masks(masks, SIZE_HW).rles) == masks_to_rles(bar[None])
    masks = pieces((wider, TOP_LEFT), (bar, TOP_LEFT), (bar, TOP_RIGHT), (wider, TOP_RIGHT))
    merged = merge_cut_masks(masks, SIZE_HW)
    assert in_lists(merged.rles) == masks_to_rles(np.stack([wider, bar]))


def test_two_objects_side_by_side():
    bars = [box_mask(100, 40, 500, 60), box_mask(90, 150, 590, 170)]
    crops = (TOP_LEFT, TOP_RIGHT)
    masks = pieces(*((bar, crop) for crop in crops for bar in bars))
    assert in_lists(merge_cut_masks(masks, SIZE_HW).rles) == masks_to_rles(np.stack(bars))


# ---- the generator


def generated(image, **options):
    """Records of crops; the whole image is asked about its upper left corner alone."""
    grid = (np.mgrid[:12, :12].reshape(2, -1).T + 0.5) / 12
    generator = SAMAutomaticMaskGenerator(
        ColourBackend(small_config(input_size=(256, 256))),
        points_per_side=None,
        point_grids=[np.full((1, 2), 0.01), grid],
        crop_n_layers=1,
        output_mode="uncompressed_rle",
        **options,
    )
    return generator.generate(image)


def test_the_generator_merges_where_it_is_asked_to():
    image = np.zeros((*SIZE_HW, 3), np.uint8)
    bar, spot = box_mask(100, 40, 500, 110), box_mask(30, 200, 100, 260)
    image[bar], image[spot] = (255, 80, 0), (0, 90, 255)
    [record] = generated(image)
    assert record["crop_box"] == [0, 132, 368, 268]
    apart, merged = generated(image, merge_crop_seams=True)
    assert apart == record
    mask = rle_to_mask(merged["segmentation"])
    assert (mask & bar).sum() / (mask | bar).sum() > 0.9
    left, top, right, bottom = masks_to_boxes(mask).tolist()
    assert merged["bbox"] == [left, top, right - left, bottom - top]
    assert merged["area"] == rle_area(merged["segmentation"]) == mask.sum()
    assert merged["crop_box"] == [0, 0, 600, 268]
    assert merged["predicted_iou"] == pytest.approx(0.95)
    [[x, y]] = merged["point_coords"]
    assert bar[int(y), int(x)]


def test_layers_are_merged_each_for_itself():
    image = np.zeros((*SIZE_HW, 3), np.uint8)
    image[box_mask(100, 40, 500, 110)] = 255
    generator = SAMAutomaticMaskGenerator(
        ColourBackend(small_config(input_size=(256, 256))),
        points_per_side=12,
        crop_n_layers=2,
        crop_nms_thresh=1.0,
        merge_crop_seams=True,
    )
    crops = [record["crop_box"] for record in generator.generate(image)]
    assert [crop[2:] for crop in crops] == [[600, 234], [600, 268], [600, 400]]
