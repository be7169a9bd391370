"""Prompts that cannot be meant are refused with the likely cause; borders are not."""

import numpy as np
import pytest

from segment_anything_transformers import SAMPredictor, SegmentAnythingProcessor
from segment_anything_transformers.model.image_processing_segment_anything import (
    SegmentAnythingImageProcessor,
)
from segment_anything_transformers.model.prompt_rules import (
    check_boxes,
    check_mask_logits,
    check_points,
)
from tests.fake_backend import FakeBackend, small_config

HEIGHT, WIDTH = 400, 500

POINTS_REFUSED = {
    (-50.0, 20.0): r"points: \(-50, 20\) lies outside the image of 500 x 400 pixels",
    (9000.0, 9000.0): r"\(9000, 9000\) lies outside",
    (20.0, 490.0): "x comes before y",
    (0.4, 0.6): "look like normalised coordinates, from 0 to 1. Multiply x by 500 and y by 400",
}
POINTS_TAKEN = [(0.0, 0.0), (500.0, 400.0), (-3.0, 410.0), (0.0, 1.0), (499.5, 0.5), (0.5, 7.0)]
BOXES_REFUSED = {
    (9000.0, 9000.0, 9100.0, 9100.0): r"boxes: \(9000, 9000, 9100, 9100\) lies outside",
    (10.0, 10.0, 9000.0, 390.0): r"reaches far outside the image of 500 x 400",
    (-200.0, 10.0, 90.0, 390.0): "reaches far outside",
    (510.0, 10.0, 530.0, 20.0): "lies outside",
    (0.1, 0.2, 0.4, 0.5): "look like normalised coordinates",
    (0.0, 0.0, 1.0, 1.0): "look like normalised coordinates",
    (90.0, 10.0, 20.0, 40.0): "right >= left and bottom >= top.* width and height",
}
BOXES_TAKEN = [
    (0.0, 0.0, 500.0, 400.0),
    (-2.0, -1.0, 503.0, 402.0),
    (450.0, 300.0, 560.0, 450.0),
    (500.0, 400.0, 500.0, 400.0),
    (0.0, 0.0, 0.0, 0.0),
    (0.2, 0.2, 3.0, 4.0),
]
MASK = np.zeros((6, 8))
MASK[2:4, 3:7] = 1
SOFT = np.clip(MASK + np.roll(MASK, 1, 1) / 2, 0, 1)
MASKS_REFUSED = {
    "0 and 1": (MASK, r"values from 0 to 1: this looks like a picture .*mask > 0\.5, 10"),
    "0 and 255": (255 * MASK, r"from 0 to 255: .* np.where\(mask > 127\.5, 10\.0, -10\.0\)"),
    "bytes": ((255 * MASK).astype(np.uint8), "from 0 to 255"),
    "resized": (SOFT, "from 0 to 1"),
    "resized bytes": (255 * SOFT, "from 0 to 255"),
    "16 bits": (65535 * MASK, "from 0 to 65535"),
    "probabilities": (0.01 + 0.98 * SOFT, "or like probabilities"),
    "huge": (np.where(MASK > 0, 1e30, -1e30), r"values up to 1e\+30. Clip them"),
    "hugely negative": (np.where(MASK > 0, 8.0, -1e30), r"up to 1e\+30"),
}
MASKS_TAKEN = {
    "none": np.zeros((6, 8)),
    "sure": np.where(MASK > 0, 10.0, -10.0),
    "padded": np.where(MASK > 0, 8.0, 0.0),
    "everything": np.full((6, 8), 12.0) + MASK,
    "large": np.where(MASK > 0, 1000.0, -1000.0),
    "constant": np.ones((6, 8)),
}


@pytest.mark.parametrize("point", POINTS_REFUSED)
def test_points_that_cannot_be_meant(point):
    with pytest.raises(ValueError, match=POINTS_REFUSED[point]):
        check_points("points", np.array([[point]]), (HEIGHT, WIDTH))


@pytest.mark.parametrize("point", POINTS_TAKEN)
def test_points_near_the_border_are_taken(point):
    check_points("points", np.array([[point]]), (HEIGHT, WIDTH))


def test_one_point_in_the_first_pixel_is_taken_with_others():
    check_points("points", np.array([[0.5, 0.5], [30.0, 40.0]]), (HEIGHT, WIDTH))


def test_points_that_do_not_count_may_lie_anywhere():
    points = np.array([[-999.0, 9.0], [4.0, 5.0]])
    check_points("points", points, (HEIGHT, WIDTH), np.array([False, True]))


@pytest.mark.parametrize("box", BOXES_REFUSED)
def test_boxes_that_cannot_be_meant(box):
    with pytest.raises(ValueError, match=BOXES_REFUSED[box]):
        check_boxes("boxes", np.array([box]), (HEIGHT, WIDTH))


@pytest.mark.parametrize("box", BOXES_TAKEN)
def test_boxes_that_end_a_little_outside_are_taken(box):
    check_boxes("boxes", np.array([box]), (HEIGHT, WIDTH))


@pytest.mark.parametrize("name", MASKS_REFUSED)
def test_masks_that_are_no_logits(name):
    mask, message = MASKS_REFUSED[name]
    with pytest.raises(ValueError, match=f"masks must hold logits.*{message}"):
        check_mask_logits("masks", np.stack([MASKS_TAKEN["sure"], mask]))


@pytest.mark.parametrize("name", MASKS_TAKEN)
def test_masks_that_may_be_logits(name):
    check_mask_logits("masks", MASKS_TAKEN[name][None])


# ---- the same at every door; the command and the endpoint have theirs in their own tests


def ask_predictor(**prompts):
    predictor = SAMPredictor(FakeBackend(small_config()))
    predictor.set_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return predictor(**prompts)


def ask_processor(points=None, boxes=None, masks=None):
    processor = SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(small_config()))
    return processor(
        np.zeros((HEIGHT, WIDTH, 3), np.uint8),
        input_points=None if points is None else [points],
        input_boxes=None if boxes is None else [boxes],
        input_masks=masks,
    )


@pytest.mark.parametrize("ask", [ask_predictor, ask_processor])
@pytest.mark.parametrize("point", POINTS_REFUSED)
def test_every_door_refuses_such_points(ask, point):
    with pytest.raises(ValueError, match=POINTS_REFUSED[point].removeprefix("points: ")):
        ask(points=[point])


@pytest.mark.parametrize("ask", [ask_predictor, ask_processor])
@pytest.mark.parametrize("box", BOXES_REFUSED)
def test_every_door_refuses_such_boxes(ask, box):
    with pytest.raises(ValueError, match=BOXES_REFUSED[box].removeprefix("boxes: ")):
        ask(boxes=[box])


@pytest.mark.parametrize("ask", [ask_predictor, ask_processor])
def test_every_door_takes_what_is_near(ask):
    ask(points=POINTS_TAKEN)
    ask(boxes=BOXES_TAKEN)


@pytest.mark.parametrize("ask", [ask_predictor, ask_processor])
@pytest.mark.parametrize("value", [1.0, 255.0, 1e30])
def test_every_door_refuses_masks_that_are_no_logits(ask, value):
    mask = np.zeros((1, *small_config().mask_size()), np.float32)
    mask[0, 3:9, 4:8] = value
    with pytest.raises(ValueError, match="must hold logits"):
        ask(masks=mask)


def test_masks_of_the_image_are_looked_at_before_they_are_resized():
    predictor = SAMPredictor(FakeBackend(small_config()))
    predictor.set_image(np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    mask = np.zeros((1, HEIGHT, WIDTH))
    mask[0, 30:90, 40:80] = 1
    with pytest.raises(ValueError, match="mask must hold logits"):
        predictor.preprocess_masks(mask)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [[1, 2], [3]]}, r"points must have shape \(M1, 2\).* rows of equal length"),
        ({"boxes": [[1, 2, 3, 4], [3]]}, "boxes must have shape .* rows of equal length"),
        ({"points": [[1, 2]], "labels": [[1], [1, 0]]}, "labels must have shape"),
        ({"masks": [[[1, 2], [3]]]}, "masks must have shape"),
    ],
)
def test_rows_of_different_lengths_are_named_in_our_words(prompts, message):
    with pytest.raises(ValueError, match=message) as caught:
        ask_predictor(**prompts)
    assert "inhomogeneous" not in str(caught.value)
