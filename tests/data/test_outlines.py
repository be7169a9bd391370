"""Outlines of masks, against the readers that fill them: pycocotools, OpenCV and PIL."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy import ndimage

from segment_anything_transformers.data.outlines import fill, paint, signed_area, trace
from segment_anything_transformers.data.polygons import (
    joined,
    mask_polygons,
    without_holes,
)
from segment_anything_transformers.model.mask_ops import rle_to_mask

RINGS = ".###. #...# #.#.# #...# .###."  # pixels that touch at corners, outside and inside
SPECIAL = {
    "empty": "... ...",
    "full": "### ###",
    "one": "#",
    "corners": "#. .#",
    "other corners": ".# #.",
    "rings": RINGS,
    "pinched": "##. #.# ###",  # its hole touches the outside in a corner
    "two holes": "##### #.#.# ##### #..## #####",
    "holes in a row": "####### #.#.#.# #######",
    "line": "#####",
}


def picture(text):
    return np.array([[letter == "#" for letter in row] for row in text.split()])


def blobs(seed, count, longest=90):
    """Random masks, from noise to smooth, with parts, holes and pixels that touch at corners."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        noise = rng.standard_normal(rng.integers(4, longest, 2))
        smooth = ndimage.gaussian_filter(noise, rng.uniform(0.3, 6))
        yield smooth > np.quantile(smooth, rng.uniform(0.2, 0.9))


def all_rings(polygons):
    return [ring for polygon in polygons for ring in polygon.rings]


def filled_by_coco(polygons, size_hw):
    rings = [without_holes(polygon).ravel().tolist() for polygon in polygons]
    runs = coco_mask.frPyObjects(rings, *size_hw)
    return rle_to_mask(coco_mask.merge(runs))  # pycocotools' own decode warns with numpy 2


def filled_by_opencv(polygons, size_hw, as_integers=np.trunc):
    """As ultralytics does, which cuts to integers, or supervision, which rounds."""
    canvas = np.zeros(size_hw, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [as_integers(without_holes(polygon)).astype(np.int32)], 1)
    return canvas.astype(bool)


def painted(polygons, size_hw):
    return paint([without_holes(polygon) for polygon in polygons], size_hw)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def edges_that_cross(rings):
    """Pairs of edges that have a point in common which is not a corner of both."""
    edges = [(a, b) for ring in rings for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True)]

    def side(a, b, c):
        turn = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        return 0 if abs(turn) < 1e-9 else np.sign(turn)

    for index, (a, b) in enumerate(edges):
        for c, d in edges[:index]:
            corners = {tuple(a), tuple(b), tuple(c), tuple(d)}
            if len(corners) == 4 and (
                side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
            ):
                yield a, b, c, d


def check_exact(mask):
    exact, within = trace(mask), mask_polygons(mask, 0, painted=True)
    np.testing.assert_array_equal(fill(all_rings(exact), mask.shape), mask)
    np.testing.assert_array_equal(painted(within, mask.shape), mask)
    for as_integers in (np.trunc, np.round):
        np.testing.assert_array_equal(filled_by_opencv(within, mask.shape, as_integers), mask)
    if mask.any():
        np.testing.assert_array_equal(filled_by_coco(exact, mask.shape), mask)


@pytest.mark.parametrize("text", SPECIAL.values(), ids=SPECIAL)
def test_outlines_filled_are_the_mask_again(text):
    mask = picture(text)
    check_exact(mask)


def test_outlines_of_random_masks_filled_are_the_masks_again():
    for mask in blobs(0, 150):
        check_exact(mask)


def test_rings_are_simple_and_their_areas_are_the_pixels():
    for mask in [*blobs(1, 60), *map(picture, SPECIAL.values())]:
        polygons = trace(mask)
        assert len(polygons) == ndimage.label(mask)[1]
        assert sum(signed_area(ring) for ring in all_rings(polygons)) == mask.sum()
        for polygon in polygons:
            assert signed_area(polygon.outer) > 0
            assert all(signed_area(hole) < 0 for hole in polygon.holes)
            for ring in polygon.rings:
                assert len({tuple(corner) for corner in ring}) == len(ring)


def test_outlines_have_corners_alone():
    [polygon] = trace(picture("#### #..# ####"))
    assert polygon.outer.tolist() == [[0, 0], [4, 0], [4, 3], [0, 3]]
    [hole] = polygon.holes
    assert sorted(hole.tolist()) == [[1, 1], [1, 2], [3, 1], [3, 2]]
    [polygon] = trace(picture("#### #..# ####"), 0.25)
    assert polygon.outer.tolist() == [[0.25, 0.25], [3.75, 0.25], [3.75, 2.75], [0.25, 2.75]]
    assert sorted(polygon.holes[0].tolist()) == [
        [0.75, 0.75],
        [0.75, 2.25],
        [3.25, 0.75],
        [3.25, 2.25],
    ]


@pytest.mark.slow
def test_simplified_polygons_stay_what_they_are_to_every_reader():
    n_exact = n_simplified = 0
    for mask in blobs(2, 60):
        polygons, within = mask_polygons(mask), mask_polygons(mask, painted=True)
        assert iou(filled_by_coco(polygons, mask.shape), mask) >= 0.99
        for as_integers in (np.trunc, np.round):
            assert iou(filled_by_opencv(within, mask.shape, as_integers), mask) >= 0.99
        assert iou(painted(within, mask.shape), mask) >= 0.99
        n_exact += len(np.concatenate(all_rings(trace(mask))))
        n_simplified += len(np.concatenate(all_rings(polygons)))
    assert n_simplified < 0.8 * n_exact


def test_simplified_polygons_do_not_cross():
    for mask in blobs(3, 25, longest=30):
        for tolerance in (0.5, 1, 3):
            assert not [*edges_that_cross(all_rings(mask_polygons(mask, tolerance)))]


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 2.0])
def test_the_tolerance_is_kept(tolerance):
    rows, columns = np.mgrid[:300, :300]
    disc = np.hypot(rows - 150, columns - 140) < 120
    [exact], [simplified] = trace(disc), mask_polygons(disc, tolerance)
    assert len(simplified.outer) < len(exact.outer) / (1 if tolerance == 0.5 else 3)
    starts, ends = simplified.outer, np.roll(simplified.outer, -1, axis=0)
    along = ends - starts
    away = exact.outer[:, None] - starts
    share = np.clip((away * along).sum(-1) / (along**2).sum(-1), 0, 1)
    distances = np.linalg.norm(away - share[..., None] * along, axis=-1).min(axis=1)
    assert distances.max() <= tolerance


def test_rectangles_keep_their_four_corners():
    mask = np.zeros((50, 60), bool)
    mask[10:40, 20:50] = True
    [polygon] = mask_polygons(mask)
    assert polygon.outer.tolist() == [[20, 10], [50, 10], [50, 40], [20, 40]]


def test_parts_can_be_joined_to_one_ring():
    mask = np.zeros((60, 60), bool)
    mask[5:30, 5:30] = mask[35:55, 32:58] = True
    mask[10:20, 10:20] = False
    rings = [without_holes(polygon) for polygon in mask_polygons(mask, painted=True)]
    assert len(rings) == 2
    both = paint([joined(rings)], mask.shape)
    assert (both | mask == both).all()
    assert iou(both, mask) >= 0.99


def test_what_is_no_mask_is_said():
    with pytest.raises(ValueError, match=r"Expected a mask of shape \(H, W\), got \(2, 3, 4\)"):
        trace(np.zeros((2, 3, 4), bool))
    with pytest.raises(ValueError, match=r"tolerance must be 0 or more pixels, got -1"):
        mask_polygons(np.ones((2, 2), bool), -1)
