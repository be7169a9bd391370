"""A predictor that looks at a part of its image."""

import numpy as np
import pytest

from segment_anything_transformers import SAMPredictor, SegmentAnythingModel, evaluate
from segment_anything_transformers.data.samples import Sample
from segment_anything_transformers.prediction.object_masks import (
    Look,
    segment_closely,
    segment_object,
    zoom_to_object,
)
from segment_anything_transformers.prediction.prompts import NOT_A_POINT
from segment_anything_transformers.prediction.zoom import OUTSIDE_LOGIT, Region, box_around
from tests.fake_backend import FakeBackend, small_config
from tests.tiny import random_model

H0, W0 = 150, 240
BOX = [100, 40, 129, 59]
REGION = (85, 20, 145, 80)  # half of the longer side, 30 pixels, more on each side
IMAGE = np.random.default_rng(0).integers(0, 256, (H0, W0, 3), np.uint8)


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture
def predictor(model):
    predictor = SAMPredictor(model)
    predictor.set_image(IMAGE)
    return predictor


@pytest.fixture
def fake():
    backend = FakeBackend(small_config())
    predictor = SAMPredictor(backend)
    predictor.set_image(IMAGE)
    predictor.zoom(BOX)
    return predictor, backend


# ---- the part


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        (BOX, 0.5, REGION),
        (BOX, 0.0, (99, 34, 131, 66)),  # no smaller than 32 pixels
        ([0, 0, 39, 39], 0.5, (0, 0, 80, 80)),  # moved into the image
        ([220, 130, 239, 149], 1.0, (180, 90, 240, 150)),
        ([20, 10, 119, 20], 0.5, (0, 0, 200, 150)),  # the image is shorter
        ([0, 0, 239, 149], 0.5, (0, 0, 240, 150)),
    ],
)
def test_the_part_is_a_square_around_the_box_within_the_image(box, margin, expected):
    assert Region.around(np.array(box), (H0, W0), margin) == expected


def test_a_box_around_points_and_a_mask():
    mask = np.zeros((H0, W0), bool)
    points = np.array([[7, 90], [30, 60]])
    assert box_around(points, mask).tolist() == [7, 60, 30, 90]
    mask[70:100, 20:50] = True
    assert box_around(points, mask).tolist() == [7, 60, 49, 99]
    assert box_around(points[:0], mask).tolist() == [20, 70, 49, 99]


# ---- prompts and masks in pixels of the image


def test_the_part_is_answered_as_an_image_of_its_own(model, predictor):
    left, top, right, bottom = REGION
    cut = SAMPredictor(model)
    cut.set_image(IMAGE[top:bottom, left:right])
    whole_image = predictor.region
    predictor.zoom(BOX)
    assert (whole_image, predictor.region) == ((0, 0, W0, H0), REGION)
    assert predictor.original_size == (H0, W0)
    origin = np.array([left, top])
    points, boxes = np.array([[[110, 50]], [[90, 70]]]), np.array([[BOX], [[90, 30, 140, 78]]])
    drawn = np.random.default_rng(1).normal(size=(2, 1, H0, W0)).astype(np.float32)
    masks, scores, logits = predictor(
        points=points, boxes=boxes, masks=predictor.preprocess_masks(drawn), return_logits=True
    )
    expected, expected_scores, expected_logits = cut(
        points=points - origin,
        boxes=boxes - np.tile(origin, 2),
        masks=cut.preprocess_masks(drawn[..., top:bottom, left:right]),
        return_logits=True,
    )
    np.testing.assert_array_equal(scores, expected_scores)
    np.testing.assert_array_equal(logits, expected_logits)
    assert masks.shape == (2, 3, H0, W0)
    np.testing.assert_array_equal(masks[..., top:bottom, left:right], expected)
    masks[..., top:bottom, left:right] = OUTSIDE_LOGIT
    assert (masks == OUTSIDE_LOGIT).all()


def test_masks_end_with_the_part(predictor):
    predictor.zoom(BOX)
    logits, _, _ = predictor(points=np.array([[110, 50]]), return_logits=True)
    masks, _, _ = predictor(points=np.array([[110, 50]]))
    np.testing.assert_array_equal(masks, logits > 0)
    assert masks.shape == (3, H0, W0)


def test_looking_at_all_of_it_again_encodes_nothing(fake):
    predictor, backend = fake
    assert len(backend.encoded) == 2
    embeddings = predictor.image_embeddings
    predictor.zoom(BOX)  # already there
    predictor.zoom(None)
    assert predictor.region == (0, 0, W0, H0)
    predictor.zoom([0, 0, W0 - 1, H0 - 1])  # nothing to cut off
    predictor.zoom(np.ones((H0, W0), bool))
    assert len(backend.encoded) == 2
    assert predictor.image_embeddings is not embeddings
    predictor(points=np.array([[60, 30]]))
    scale = np.divide(backend.config.input_size[1], W0)
    np.testing.assert_allclose(backend.decoded[-1]["points"][0, 0], [60 * scale, 30 * scale])


def test_a_mask_is_zoomed_to_like_its_box(fake):
    predictor, _ = fake
    mask = np.zeros((H0, W0), bool)
    mask[40:60, 100:130] = True
    predictor.zoom(None)
    predictor.zoom(mask)
    assert predictor.region == REGION
    predictor.zoom(mask, margin=1.0)
    assert predictor.region == (70, 5, 160, 95)


def test_another_image_is_seen_as_a_whole(fake):
    predictor, _ = fake
    predictor.set_image(IMAGE[:100])
    assert predictor.region == (0, 0, W0, 100)


def test_background_points_beyond_the_part_are_none_and_boxes_end_there(fake):
    predictor, backend = fake
    predictor(
        points=np.array([[110, 50], [20, 50], [90, 25]]),
        labels=np.array([1, 0, 0]),
        boxes=np.array([[60, 40, 129, 99]]),
    )
    asked = backend.decoded[-1]
    assert asked["labels"].tolist() == [[1, NOT_A_POINT, 0]]
    height, width = backend.config.input_size
    scale = min(height, width) / 60
    np.testing.assert_allclose(asked["boxes"][0, 0], np.array([0, 20, 44, 60]) * scale)


def test_single_clicks_are_answered_from_the_part(fake):
    predictor, backend = fake
    points = np.array([[[110, 50]]])
    predictor(points=points)
    predictor.predict_above(points, 0.5)
    call, above = backend.decoded[-2:]
    np.testing.assert_array_equal(call["points"], above["points"])


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"points": [[110, 50], [84, 50]]}, r"point \[84, 50\] lies beyond .*\(85, 20, 145, 80\)"),
        ({"boxes": [[0, 0, 60, 60]]}, r"box \[0, 0, 60, 60\] lies beyond .*zoom\(None\)"),
    ],
)
def test_an_object_beyond_the_part_is_refused(fake, prompts, message):
    with pytest.raises(ValueError, match=message):
        fake[0](**{name: np.array(values) for name, values in prompts.items()})


@pytest.mark.parametrize(
    ("target", "margin", "error", "message"),
    [
        ([0, 0, 10], 0.5, ValueError, "box"),
        ([30, 0, 10, 10], 0.5, ValueError, "box"),
        ([W0, 0, W0 + 5, 10], 0.5, ValueError, "in the image"),
        ([-9, 0, -1, 10], 0.5, ValueError, "in the image"),
        ([0, 0, np.nan, 10], 0.5, ValueError, "box"),
        (BOX, -0.1, ValueError, "margin must be 0 or more"),
        (BOX, np.nan, ValueError, "margin must be 0 or more"),
        (np.ones((H0, W0)), 0.5, TypeError, "boolean"),
        (np.zeros((H0, W0), bool), 0.5, ValueError, "show something"),
        (np.ones((W0, H0), bool), 0.5, ValueError, "size"),
    ],
)
def test_what_cannot_be_zoomed_to_is_refused(fake, target, margin, error, message):
    predictor, _ = fake
    with pytest.raises(error, match=message):
        predictor.zoom(target, margin)
    assert predictor.region == REGION


def test_zooming_needs_an_image(model, predictor):
    with pytest.raises(RuntimeError, match="No image is set"):
        SAMPredictor(model).zoom(BOX)
    [encoded] = predictor.encode([predictor.prepare(IMAGE)])
    predictor.set_encoded(encoded)
    with pytest.raises(RuntimeError, match="Only the image's embedding is set"):
        predictor.zoom(BOX)


# ---- objects


def test_an_object_is_zoomed_to_by_its_boxes_or_by_what_is_found(fake):
    predictor, _ = fake
    predictor.zoom(None)
    zoom_to_object(predictor, {"boxes": np.array([[100, 40, 119, 59], [115, 45, 129, 55]])})
    assert predictor.region == REGION
    predictor.zoom(None)
    prompts = {"points": np.array([[120, 75], [10, 10]]), "labels": np.array([1, 0])}
    [mask], _ = segment_object(predictor, prompts)
    zoom_to_object(predictor, prompts)
    expected = box_around(prompts["points"][:1], mask)
    assert predictor.region == Region.around(expected, (H0, W0), 0.5)


@pytest.mark.parametrize("keep_all", [False, True])
def test_of_two_looks_the_one_that_is_rated_higher_is_kept(fake, keep_all):
    predictor, _ = fake
    looks, everything = set(), (0, 0, W0, H0)
    for x in range(8, W0 - 8, 9):
        prompts = {"points": np.array([[x, 30]]), "boxes": np.array([[x - 6, 24, x + 6, 36]])}
        masks, scores, look = segment_closely(predictor, lambda prompts=prompts: prompts, keep_all)
        looks.add(look)
        seen = predictor.region
        np.testing.assert_array_equal(masks, segment_object(predictor, prompts, keep_all)[0])
        predictor.zoom(None)
        _, whole = segment_object(predictor, prompts, keep_all)
        zoom_to_object(predictor, prompts)
        _, close = segment_object(predictor, prompts, keep_all)
        assert scores[0] == max(whole[0], close[0])
        assert seen == (predictor.region if look is Look.CLOSE else everything)
        assert (look is Look.NOTHING_CLOSER) == (predictor.region == everything)
    assert looks == {Look.CLOSE, Look.WHOLE}


def test_what_fills_the_image_has_nothing_closer(fake):
    predictor, _ = fake
    prompts = {"boxes": np.array([[0, 0, W0 - 1, H0 - 1]])}
    masks, _, look = segment_closely(predictor, lambda: prompts)
    assert look is Look.NOTHING_CLOSER
    np.testing.assert_array_equal(masks, segment_object(predictor, prompts)[0])


@pytest.fixture(scope="module")
def dots():
    """A large picture with small dots, and their masks."""
    rows, columns = np.mgrid[:700, :700]
    centres = [(100, 120), (330, 500), (560, 240), (620, 610)]
    masks = np.stack([(rows - y) ** 2 + (columns - x) ** 2 < 9**2 for y, x in centres])
    image = np.full((700, 700, 3), (120, 150, 90), np.uint8)
    image[masks.any(0)] = (200, 60, 40)
    return Sample("dots", image, masks)


@pytest.mark.slow
def test_small_objects_get_finer_masks(dots):
    predictor = SAMPredictor(SegmentAnythingModel.from_pretrained("sam_vit_t"))
    once, closely = (evaluate(predictor, [dots], (1, 2), zoom=zoom) for zoom in (False, True))
    assert predictor.region == (0, 0, 700, 700)
    for figure in ("box_best", "click_1", "click_2"):
        worse, better = (one.means()["all"][figure] for one in (once, closely))
        assert better > worse + 0.02
        assert better > 0.9
