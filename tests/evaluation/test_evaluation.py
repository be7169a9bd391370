import json

import numpy as np
import pytest

from segment_anything_transformers.data.samples import AnnotationError, Sample, Samples
from segment_anything_transformers.evaluation.evaluation import (
    CLICKS,
    Evaluation,
    ObjectQuality,
    evaluate,
)
from segment_anything_transformers.evaluation.report import draw_worst, quality_table
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from segment_anything_transformers.model.mask_ops import masks_to_boxes, rle_to_mask
from segment_anything_transformers.prediction.backends import GoodMasks
from segment_anything_transformers.prediction.predictor import SAMPredictor
from segment_anything_transformers.prediction.zoom import MARGIN, Region
from tests.fake_backend import ColourBackend, FakeBackend, small_config
from tests.sample_folders import rectangle_samples
from tests.tiny import random_model

SIZE_HW = (64, 64)  # that of the model's input, so that its pixels are the image's
LOGIT = 10.0


class Scripted(FakeBackend):
    """Answers with given masks (calls, P, K, 32, 32), and remembers what it was asked."""

    name = "scripted"
    encodes_aside = False

    def __init__(self, box_masks, click_masks, scores):
        self.config = small_config(input_size=SIZE_HW)
        self.box_masks, self.click_masks, self.scores = box_masks, click_masks, scores
        self.asked = []

    def encode_images(self, pixel_values):
        return pixel_values

    def decode(self, image_embeddings, points, labels, boxes, masks, multimask_output):
        count = 3 if multimask_output else 1
        if points is None:
            answer = self.box_masks[:, :count]
        else:
            self.asked.append((points, labels, masks, multimask_output))
            answer = self.click_masks[len(self.asked) - 1][: len(points), :count]
        scores = np.tile(np.float32(self.scores[:count]), (len(answer), 1))
        return np.where(answer, LOGIT, -LOGIT).astype(np.float32), scores

    def decode_above(self, image_embeddings, points, labels, iou_threshold):
        outputs = self.decode(image_embeddings, points, labels, None, None, True)
        return GoodMasks.above(iou_threshold, *outputs)


def low(left, top, right, bottom):
    """A rectangle in logits; its edges are half those of the mask in the image."""
    mask = np.zeros((32, 32), bool)
    mask[top:bottom, left:right] = True
    return mask


def high(mask):
    return mask.repeat(2, axis=0).repeat(2, axis=1)


TRUTH = low(4, 4, 20, 12)
THREE = np.stack([low(4, 4, 8, 12), low(4, 4, 12, 12), TRUTH])[None]  # IoU 1/4, 1/2, 1


@pytest.fixture
def sample():
    return Sample("a", np.zeros((*SIZE_HW, 3), np.uint8), high(TRUTH)[None])


def test_clicks_follow_the_largest_error(sample):
    # The second mask is rated best; then the object is exceeded; then it is right.
    wide = low(4, 4, 28, 12)
    clicks = [THREE, wide[None, None], TRUTH[None, None]]
    backend = Scripted(THREE, clicks, [0.3, 0.9, 0.6])
    result = evaluate(backend, [sample], clicks=[1, 2, 3, 5])
    assert len(backend.asked) == 3  # nothing is left to correct after the third
    first, second, third = backend.asked
    assert [call[3] for call in backend.asked] == [True, False, False]
    assert first[2] is None
    np.testing.assert_array_equal(second[2][0, 0] > 0, THREE[0, 1])  # the mask rated best
    np.testing.assert_array_equal(third[2][0, 0] > 0, wide)
    np.testing.assert_array_equal(third[1], [[1, 1, 0]])
    [(x0, y0), (x1, _), (x2, _)] = third[0][0]
    assert 14 <= x0 <= 34
    assert 14 <= y0 <= 18
    assert 30 <= x1 <= 34  # in what the first mask missed
    assert 46 <= x2 <= 50  # in what the second had too much
    figures = result.objects[0].figures
    assert figures["click_1"] == 0.5
    assert figures["click_1_oracle"] == 1.0
    assert figures["click_2"] == pytest.approx(2 / 3)
    assert figures["click_3"] == figures["click_5"] == 1.0
    assert figures["click_3_boundary"] == 1.0 > figures["click_2_boundary"]


def test_boxes_are_those_of_the_true_masks(sample):
    backend = Scripted(THREE, [TRUTH[None, None, :].repeat(3, axis=1)], [0.3, 0.9, 0.6])
    boxes = []
    decode = backend.decode

    def remember(image_embeddings, points, labels, given, *rest):
        boxes.extend([] if given is None else given.reshape(-1, 4).tolist())
        return decode(image_embeddings, points, labels, given, *rest)

    backend.decode = remember
    quality = evaluate(backend, [sample], clicks=[1]).objects[0]
    assert boxes == [[8, 8, 39, 23]] * 2 == [list(quality.box)] * 2
    assert quality.figures["box"] == 0.25
    assert quality.figures["box_best"] == 0.5
    assert quality.figures["box_oracle"] == 1.0
    np.testing.assert_array_equal(rle_to_mask(quality.box_mask), high(THREE[0, 0]))
    expected = [(0.3, 0.25), (0.3, 0.25), (0.9, 0.5), (0.6, 1.0), (0.3, 1.0), (0.9, 1.0), (0.6, 1)]
    np.testing.assert_allclose(quality.ratings, expected, rtol=1e-6)


class Watched(SAMPredictor):
    """Notes the part of the image that each question is asked about, and whether with a mask."""

    def __init__(self, *given):
        super().__init__(*given)
        self.seen = []

    def __call__(self, *given, **prompts):
        self.seen.append((self.region, prompts.get("masks") is not None))
        return super().__call__(*given, **prompts)


def test_zoomed_each_object_is_seen_closely():
    image = np.zeros((*SIZE_HW, 3), np.uint8)
    image[8:16, 8:16], image[40:44, 40:44] = 255, 128
    object_in_two = np.zeros((1, *SIZE_HW), bool)
    object_in_two[0, 8:16, 8:16] = object_in_two[0, 40:44, 40:44] = True
    predictor = Watched(ColourBackend(small_config(input_size=SIZE_HW)))
    result = evaluate(predictor, [Sample("a", image, object_in_two)], (1, 2), zoom=True)
    whole = (0, 0, *SIZE_HW)
    # Box twice; a click on the whole, then on what it found; then one on what that leaves out.
    first = Region.around(np.array([8, 8, 15, 15]), SIZE_HW, MARGIN)
    assert predictor.seen == [(whole, False)] * 3 + [(first, False), (whole, True)]
    assert predictor.region == whole
    assert result.objects[0].figures["click_1"] == pytest.approx(64 / 80, abs=0.2)  # of one of two


def test_unknown_pixels_do_not_count(sample):
    ignored = high(low(12, 0, 32, 32))  # all that the second mask misses
    sample = Sample("a", sample.image, sample.masks & ~ignored, ignored)
    backend = Scripted(THREE, [THREE], [0.3, 0.9, 0.6])
    figures = evaluate(backend, [sample], clicks=[1, 2]).objects[0].figures
    assert figures["click_1"] == figures["click_2"] == figures["click_1_boundary"] == 1.0


@pytest.fixture(scope="module")
def model():
    return random_model(small_config(input_size=SIZE_HW))


@pytest.fixture(scope="module")
def samples():
    in_memory = rectangle_samples(3, (80, 72), objects=3)

    def read(index):
        if index == 1:
            raise OSError("cut off")
        return in_memory[index].image, in_memory[index].masks, None

    return Samples(["a", "b", "c"], read)


@pytest.fixture(scope="module")
def evaluation(model, samples):
    everything = {
        "points_per_side": 3,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "output_mode": "coco_rle",
    }
    return evaluate(model, samples, everything=everything, faults="skip")


def test_figures_are_those_of_the_predictor(model, samples, evaluation):
    assert evaluation.faults == ["b: cut off"]
    assert [(q.image, q.number) for q in evaluation.objects] == [
        (name, number) for name in "ac" for number in range(3)
    ]
    predictor = SAMPredictor(model)
    for quality in evaluation.objects:
        sample = samples["abc".index(quality.image)]
        truth = sample.masks[quality.number]
        predictor.set_image(sample.image)
        masks, scores, _ = predictor(boxes=masks_to_boxes(truth)[None])
        best = masks[scores.argmax()]
        iou = (best & truth).sum() / (best | truth).sum()
        assert quality.figures["box_best"] == pytest.approx(iou)
        assert quality.area == truth.sum()
        assert {f"click_{count}" for count in CLICKS} <= quality.figures.keys()
        assert all(0 <= value <= 1 for value in quality.figures.values())


def test_means_go_over_all_and_by_size():
    figures = {1023: 1.0, 1024: 0.25, 9215: 0.75, 9216: 0.125}
    objects = [
        ObjectQuality("a", number, area, (0, 0, 95, 95), {"click_1": iou}, [], {})
        for number, (area, iou) in enumerate(figures.items())
    ]
    assert [quality.size for quality in objects] == ["small", "medium", "medium", "large"]
    assert Evaluation(objects).means() == {
        "all": {"objects": 4, "click_1": 0.53125},
        "small": {"objects": 1, "click_1": 1.0},
        "medium": {"objects": 2, "click_1": 0.5},
        "large": {"objects": 1, "click_1": 0.125},
    }
    assert Evaluation(objects[:3]).means()["large"] == {"objects": 0}


class Finder(FakeBackend):
    """In everything mode, finds given masks (n, 32, 32) with their scores, crop by crop."""

    def __init__(self, answers):
        super().__init__(small_config(input_size=SIZE_HW))
        self.answers = iter(answers)

    def decode_above(self, image_embeddings, points, labels, iou_threshold):
        masks, scores = next(self.answers)
        logits = np.where(masks, LOGIT, -LOGIT).astype(np.float32)
        return GoodMasks.above(iou_threshold, logits[None], np.array([scores], np.float32))


def columns(number, count):
    """The first of the 8 columns of an object; a mask of them has the IoU count / 8."""
    return low(4, 8 * number + 2, 4 + count, 8 * number + 6)


def test_recalls_are_those_of_the_masks_rated_best(sample):
    speck = low(24, 14, 26, 16)
    masks = [speck] * 101  # by falling score
    masks[0] = columns(3, 3)
    masks[9], masks[10] = columns(0, 5), columns(0, 7)
    masks[99], masks[100] = columns(1, 4), columns(2, 8)
    # The crops' masks, which the generator puts first, are rated below them all.
    backend = Finder([(masks, np.linspace(0.9, 0.5, 101)), *[([speck], [0.1])] * 4])
    truth = np.stack([high(columns(number, 8)) for number in range(4)])
    everything = {
        "points_per_side": 1,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "crop_n_layers": 1,
        "crop_nms_thresh": 1.0,
    }
    sample = Sample("a", sample.image, truth)
    result = evaluate(backend, [sample], clicks=[1], everything=everything)
    # IoUs of 4/8, 5/8, 7/8 and 8/8 reach 1, 3, 8 and 10 of the ten thresholds.
    expected = {
        "recall_10": [0.3, 0.0, 0.0, 0.0],
        "recall_100": [0.8, 0.1, 0.0, 0.0],
        "recall_1000": [0.8, 0.1, 1.0, 0.0],
        "found": [1.0, 1.0, 1.0, 0.0],
    }
    for name, of_objects in expected.items():
        figures = [quality.figures[name] for quality in result.objects]
        np.testing.assert_allclose(figures, of_objects, err_msg=name)
        assert result.means()["all"][name] == pytest.approx(sum(of_objects) / 4)


@pytest.mark.parametrize(("given", "found"), [({}, 1.0), ({"pred_iou_thresh": 0.7}, 0.0)])
def test_thresholds_that_are_not_given_suit_the_model(sample, monkeypatch, given, found):
    backend = Finder([([columns(0, 8)], [0.6])])
    monkeypatch.setitem(GENERATOR_THRESHOLDS, backend.config.name, {"pred_iou_thresh": 0.5})
    sample = Sample("a", sample.image, high(columns(0, 8))[None])
    result = evaluate(backend, [sample], [1], everything={"points_per_side": 1, **given})
    assert result.objects[0].figures["found"] == found


def test_the_result_goes_to_json(evaluation, tmp_path):
    evaluation.save(tmp_path / "a.json", model="tiny")
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["model"] == "tiny"
    assert content["means"] == evaluation.means()
    assert content["rating_correlation"] == evaluation.rating_correlation
    assert content["faults"] == ["b: cut off"]
    for row, quality in zip(content["objects"], evaluation.objects, strict=True):
        assert row["image"] == quality.image
        assert {name: row[name] for name in quality.figures} == quality.figures
        np.testing.assert_array_equal(rle_to_mask(row["box_mask"]), rle_to_mask(quality.box_mask))


def test_the_table_has_a_row_for_each_figure(evaluation):
    table = quality_table(evaluation)
    figures = list(evaluation.objects[0].figures)
    assert list(table.columns[0].cells)[:-1] == figures
    means = evaluation.means()["all"]
    assert list(table.columns[1].cells)[:-1] == [f"{means[name]:.3f}" for name in figures]
    assert set(table.columns[4].cells) == {"-"}


def test_the_picture_shows_the_worst(evaluation, samples):
    worst = evaluation.worst(3)
    assert [q.figures["box"] for q in worst] == sorted(q.figures["box"] for q in worst)
    assert worst[0].figures["box"] == min(q.figures["box"] for q in evaluation.objects)
    picture = np.asarray(draw_worst(evaluation, samples, 3)).astype(int)
    assert picture.shape[1] > 800
    tiles = picture.reshape(2, picture.shape[0] // 2, 2, picture.shape[1] // 2, 3)
    greenish = ((tiles[..., 1] - tiles[..., 0] > 60) & (tiles[..., 1] - tiles[..., 2] > 20)).sum(
        axis=(1, 3)
    )
    np.testing.assert_array_equal(greenish > 300, [[True, True], [True, False]])


def test_the_picture_of_float_images_is_that_of_bytes(evaluation, samples):
    sound = {sample.name: sample for sample in samples.sound("skip")[0]}

    def read(index):
        sample = sound[list(sound)[index]]
        return sample.image.astype(np.float32) + 0.25, sample.masks, sample.ignored

    floats = draw_worst(evaluation, Samples(list(sound), read), 3)
    np.testing.assert_array_equal(floats, draw_worst(evaluation, samples, 3))


def test_what_cannot_be_measured_is_refused(model, samples):
    with pytest.raises(AnnotationError, match="b: cut off"):
        evaluate(model, samples, clicks=[1])
    with pytest.raises(ValueError, match=r"no sample to evaluate\. Faults: b: cut off"):
        evaluate(model, samples[1:2], clicks=[1], faults="skip")
    for clicks in ([], [0, 1], [2, 1]):
        with pytest.raises(ValueError, match="rising numbers from 1"):
            evaluate(model, samples, clicks=clicks)


@pytest.mark.slow
@pytest.mark.tf
def test_both_frameworks_measure_the_same(model, samples, evaluation, tmp_path):
    from segment_anything_transformers import TFSegmentAnythingModel

    model.save_pretrained(tmp_path)
    theirs = evaluate(TFSegmentAnythingModel.from_pretrained(tmp_path), samples[:1], clicks=[1, 2])
    for ours, their in zip(evaluation.objects[:3], theirs.objects, strict=True):
        for name, value in their.figures.items():
            assert ours.figures[name] == pytest.approx(value, abs=0.02), name
