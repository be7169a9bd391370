"""What clicks in the demo mean, without a page."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from segment_anything_transformers import SAMAutomaticMaskGenerator, SAMPredictor
from segment_anything_transformers.demo.session import BOX, MAX_SIDE, NOT_OBJECT, DemoSession
from segment_anything_transformers.model.mask_ops import rle_to_mask
from segment_anything_transformers.prediction.object_masks import Look, segment_closely
from tests.fake_backend import small_config
from tests.tiny import random_model

WIDTH, HEIGHT = 120, 80
EVERYTHING = {
    "points_per_side": 3,
    "pred_iou_thresh": 0,
    "stability_score_thresh": 0,
    "box_nms_thresh": 1,
}


@pytest.fixture(scope="module")
def model():
    return random_model(small_config())


@pytest.fixture
def image():
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


@pytest.fixture
def session(model, image):
    return DemoSession(model, image)


@pytest.fixture
def predictor(model, image):
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    return predictor


def test_at_first_nothing_is_marked(session, image):
    assert session.prompts == {}
    assert session.records == []
    assert session.masks.shape == (0, HEIGHT, WIDTH)
    assert session.caption() == "Click on something in the picture."
    np.testing.assert_array_equal(session.picture(), image)


def test_a_lone_click_shows_one_guess_after_the_other(session, predictor):
    session.click(30, 20)
    masks, scores, _ = predictor(points=np.array([[30, 20]]))
    order = np.argsort(-scores)
    for rank in (*order, order[0]):
        [mask] = session.masks
        np.testing.assert_array_equal(mask, masks[rank])
        [record] = session.records
        np.testing.assert_array_equal(rle_to_mask(record["segmentation"]), masks[rank])
        assert record["predicted_iou"] == pytest.approx(scores[rank])
        assert f"predicted quality {scores[rank]:.2f}" in session.caption()
        session.next_guess()


def test_all_marks_mean_one_object(session, predictor):
    session.click(30, 20)
    session.click(90, 60, NOT_OBJECT)
    session.click(100, 10, BOX)
    assert session.caption() == "Now click the corner across."
    session.click(5, 70, BOX)
    masks, _, _ = predictor(
        points=np.array([[30, 20], [90, 60]]),
        labels=np.array([1, 0]),
        boxes=np.array([[5, 10, 100, 70]]),
        multimask_output=False,
    )
    assert session.n_guesses == 1
    np.testing.assert_array_equal(session.masks, masks)


def test_marks_are_answered_from_close_by_as_long_as_that_is_asked(session, predictor):
    session.look_closely(True)  # nothing is marked yet
    for left in range(5, 60, 5):  # one that is rated higher from close by
        boxed = np.array([[left, 20, left + 30, 50]])
        _, _, look = segment_closely(predictor, lambda boxed=boxed: {"boxes": boxed})
        if look is Look.CLOSE:
            break
    session.click(left, 20, BOX)
    session.click(left + 30, 50, BOX)
    predictor.zoom(boxed[0])
    masks, _, _ = predictor(boxes=boxed, multimask_output=False)
    np.testing.assert_array_equal(session.masks, masks)
    session.look_closely(False)
    assert (session.masks != masks).any()
    predictor.zoom(None)
    masks, _, _ = predictor(boxes=boxed, multimask_output=False)
    np.testing.assert_array_equal(session.masks, masks)


def test_a_click_on_a_disc_removes_it_and_undo_brings_it_back(session):
    session.click(30, 20)
    alone = session.masks
    session.click(90, 60, NOT_OBJECT)
    both = session.masks
    assert (alone != both).any()
    session.click(88, 62)
    assert session.prompts == {"points": [[30, 20]], "labels": [1]}
    np.testing.assert_array_equal(session.masks, alone)
    session.undo()
    np.testing.assert_array_equal(session.masks, both)
    session.clear()
    assert session.records == []
    session.undo()
    np.testing.assert_array_equal(session.masks, both)
    for _ in range(5):
        session.undo()
    assert session.prompts == {}


def test_everything_is_what_the_generator_finds_until_something_is_clicked(session, model, image):
    session.click(30, 20)
    clicked = session.masks
    session.find_everything(**EVERYTHING)
    records = SAMAutomaticMaskGenerator(model, **EVERYTHING).generate(image)
    assert len(records) > 1
    np.testing.assert_array_equal(session.masks, [record["segmentation"] for record in records])
    assert session.caption() == f"{len(records)} masks."
    session.next_guess()
    session.undo()
    np.testing.assert_array_equal(session.masks, clicked)
    session.find_everything(**EVERYTHING)
    session.click(90, 60)
    assert len(session.prompts["points"]) == 2
    assert len(session.masks) == 1


def test_everything_can_be_nothing(session, tmp_path):
    session.find_everything(points_per_side=1, pred_iou_thresh=100)
    assert session.caption() == "0 masks."
    assert session.masks.shape == (0, HEIGHT, WIDTH)
    assert session.picture().size == (WIDTH, HEIGHT)


def test_files_hold_what_is_in_sight(session, image, tmp_path):
    session.find_everything(**EVERYTHING)
    mask, cut_out, archive = session.write_files(tmp_path)
    union = session.masks.any(axis=0)
    np.testing.assert_array_equal(Image.open(mask), union)
    pixels = np.asarray(Image.open(cut_out))
    np.testing.assert_array_equal(pixels[..., :3], image)
    np.testing.assert_array_equal(pixels[..., 3] == 255, union)
    with zipfile.ZipFile(archive) as files:
        description = json.loads(files.read("masks.json"))
        assert (description["width"], description["height"]) == (WIDTH, HEIGHT)
        for index, (record, expected) in enumerate(
            zip(description["masks"], session.masks, strict=True)
        ):
            np.testing.assert_array_equal(rle_to_mask(record["segmentation"]), expected)
            with files.open(f"mask_{index:03d}.png") as file:
                np.testing.assert_array_equal(Image.open(file), expected)


def test_another_picture_is_a_new_beginning(session):
    session.click(30, 20)
    session.open(Image.new("L", (MAX_SIDE * 2, 100)))
    assert session.image.size == (MAX_SIDE, 50)
    assert (session.image.mode, session.prompts) == ("RGB", {})
    session.undo()
    assert session.prompts == {}


def test_clicks_that_make_no_sense_are_refused(session):
    with pytest.raises(ValueError, match=r"\(120, 5\) lies outside 120 x 80"):
        session.click(120, 5)
    with pytest.raises(ValueError, match="Unknown meaning of a click: 'lasso'"):
        session.click(1, 1, "lasso")
    assert session.prompts == {}
