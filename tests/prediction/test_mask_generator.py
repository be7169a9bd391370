import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from segment_anything_transformers import SAMPredictor, SegmentAnythingModel
from segment_anything_transformers.model import mask_ops
from segment_anything_transformers.model.mask_ops import masks_to_boxes, rle_to_mask
from segment_anything_transformers.model.mask_upscaling import MaskUpscaler
from segment_anything_transformers.prediction import mask_generator
from segment_anything_transformers.prediction.mask_generator import SAMAutomaticMaskGenerator
from tests.fake_backend import FakeBackend, small_config
from tests.generator_inputs import LENIENT, PHOTOGRAPH, compare, picture
from tests.tiny import random_model


@pytest.fixture
def fake():
    return FakeBackend(small_config(input_size=(128, 96)))


# ---- records


@pytest.mark.parametrize("crop_n_layers", [0, 1])
def test_records_describe_their_masks(fake, crop_n_layers):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, crop_n_layers=crop_n_layers)
    records = generator.generate(picture())
    assert records
    for record in records:
        mask = record["segmentation"]
        assert (mask.shape, mask.dtype) == ((70, 110), bool)
        assert record["area"] == mask.sum() > 0
        left, top, right, bottom = masks_to_boxes(mask).tolist()
        assert record["bbox"] == [left, top, right - left, bottom - top]
        assert record["predicted_iou"] > 0.82
        assert record["stability_score"] >= 0.7
        left, top, width, height = record["crop_box"]
        ((x, y),) = record["point_coords"]
        assert left <= x <= left + width
        assert top <= y <= top + height


def test_records_go_to_json(fake):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, output_mode="coco_rle")
    records = generator.generate(picture())
    masks = SAMAutomaticMaskGenerator(fake, **LENIENT).generate(picture())
    assert len(records) == len(masks) > 0
    assert json.loads(json.dumps(records)) == records
    for record, expected in zip(records, masks, strict=True):
        # the area and the box as pycocotools sees them
        assert coco.area(record["segmentation"]) == expected["area"]
        left, top, width, height = expected["bbox"]
        assert coco.toBbox(record["segmentation"]).tolist() == [left, top, width + 1, height + 1]


def test_uncompressed_run_lengths(fake):
    parameters = {**LENIENT, "output_mode": "uncompressed_rle"}
    records = SAMAutomaticMaskGenerator(fake, **parameters).generate(picture())
    decoded = [
        {**record, "segmentation": rle_to_mask(record["segmentation"])} for record in records
    ]
    compare(decoded, SAMAutomaticMaskGenerator(fake, **LENIENT).generate(picture()))


def test_records_are_ordered_by_predicted_iou(fake):
    records = SAMAutomaticMaskGenerator(fake, **LENIENT).generate(picture())
    scores = [record["predicted_iou"] for record in records]
    assert scores == sorted(scores, reverse=True)


def test_an_image_without_masks_has_no_records(fake):
    generator = SAMAutomaticMaskGenerator(fake, pred_iou_thresh=1.5, crop_n_layers=1)
    generator.min_mask_region_area = 10
    assert generator.generate(picture()) == []


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 7), (3, 2), (300, 5)])
def test_tiny_and_thin_images(fake, size_hw):
    generator = SAMAutomaticMaskGenerator(
        fake, points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0, crop_n_layers=2
    )
    for record in generator.generate(picture(*size_hw)):
        assert record["segmentation"].shape == size_hw


# ---- what is computed, and when


def test_points_come_in_batches(fake):
    SAMAutomaticMaskGenerator(fake, **LENIENT, points_per_batch=10).generate(picture())
    assert [len(prompt["points"]) for prompt in fake.decoded] == [10, 10, 10, 6]


def test_points_are_foreground_in_pixels_of_the_model_input(fake):
    SAMAutomaticMaskGenerator(fake, **LENIENT).generate(picture())
    points, labels = fake.decoded[0]["points"], fake.decoded[0]["labels"]
    # 70 x 110 fits into 128 x 96 as 61 x 96
    expected = mask_ops.point_grid(6)[:, None] * np.array([96, 61])
    np.testing.assert_allclose(points, expected, rtol=1e-6)
    assert (labels == 1).all()


def test_batches_make_no_difference(fake):
    one = SAMAutomaticMaskGenerator(fake, **LENIENT, points_per_batch=1)
    all_at_once = SAMAutomaticMaskGenerator(fake, **LENIENT, points_per_batch=1000)
    compare(one.generate(picture()), all_at_once.generate(picture()))


def test_only_what_passes_is_upscaled(fake, monkeypatch):
    upscaled, in_box = [], MaskUpscaler.in_box
    monkeypatch.setattr(
        MaskUpscaler,
        "in_box",
        lambda self, logits, cut_off: upscaled.append(cut_off) or in_box(self, logits, cut_off),
    )
    SAMAutomaticMaskGenerator(fake, **LENIENT).generate(picture())
    scores = fake.decode(np.zeros(1), fake.decoded[0]["points"], None, None, None, True)[1]
    assert upscaled == [-1.0] * (scores > 0.82).sum()
    assert len(upscaled) < scores.size


def test_each_crop_is_encoded_once(fake):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, crop_n_layers=2)
    generator.generate(picture(200, 300))
    assert len(fake.encoded) == 1 + 4 + 16


def test_a_black_crop_of_a_float_image_is_an_image(fake):
    image = np.zeros((200, 300, 3))
    image[:, 200:] = 255
    image[50, 50] = 0.5
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, crop_n_layers=1)
    generator.generate(image)
    assert len(fake.encoded) == 5


def test_masks_touching_a_crops_inner_edge_are_dropped(fake):
    parameters = {**LENIENT, "pred_iou_thresh": 0, "stability_score_thresh": 0}
    generator = SAMAutomaticMaskGenerator(fake, **parameters, crop_n_layers=1)
    records = generator.generate(picture(400, 600))
    assert any(record["crop_box"] != [0, 0, 600, 400] for record in records)
    for record in records:
        left, top, width, height = record["crop_box"]
        box_left, box_top, box_width, box_height = record["bbox"]
        assert left == 0 or box_left - left > 20
        assert top == 0 or box_top - top > 20
        assert left + width == 600 or left + width - (box_left + box_width) > 20
        assert top + height == 400 or top + height - (box_top + box_height) > 20


def test_no_small_region_is_left(fake):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, min_mask_region_area=40)
    for record in generator.generate(picture()):
        mask = record["segmentation"]
        for mode in ("holes", "islands"):
            cleaned, _ = mask_ops.remove_small_regions(mask, 40, mode)
            np.testing.assert_array_equal(cleaned, mask)


def test_no_image_stays_behind(fake, monkeypatch):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT)
    generator.generate(picture())
    assert not generator.predictor.is_image_set
    monkeypatch.setattr(fake, "decode", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generator.generate(picture())
    assert not generator.predictor.is_image_set


def test_a_real_model_without_gradients():
    model = random_model(small_config())
    model.train()
    seen = []
    encode = model.get_image_embeddings
    model.get_image_embeddings = lambda pixels: seen.append(encode(pixels)) or seen[-1]
    generator = SAMAutomaticMaskGenerator(
        model, points_per_side=3, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=1
    )
    records = generator.generate(picture())
    assert len(records) == 27
    assert [embeddings.requires_grad for embeddings in seen] == [False]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())


# ---- images


@pytest.mark.parametrize(
    "convert",
    [
        Image.fromarray,
        lambda image: Image.fromarray(image).convert("RGBA"),
        lambda image: image.astype(np.float32),
    ],
    ids=["PIL", "RGBA", "float"],
)
def test_images_of_other_kinds(fake, convert):
    image = np.repeat(np.repeat(picture(9, 12), 10, axis=0), 10, axis=1)
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, crop_n_layers=1)
    records, expected = generator.generate(convert(image)), generator.generate(image)
    assert [record["bbox"] for record in records] == [record["bbox"] for record in expected]


def test_preprocessing_is_handed_on(fake):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, preprocessing=lambda image: image * 0.0)
    generator.generate(picture())
    assert (fake.encoded[-1] == 0).all()


def test_grey_images_and_models_of_one_channel():
    fake = FakeBackend(small_config(in_channels=1))
    records = SAMAutomaticMaskGenerator(fake, **LENIENT).generate(picture(channels=1)[..., 0])
    assert fake.encoded[0].shape == (1, 1, 96, 64)
    assert records


# ---- faster, with a loss


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_the_same_masks(dtype):
    model = SegmentAnythingModel.from_pretrained("sam_vit_t")
    image = Image.open(PHOTOGRAPH)
    clicks = mask_ops.point_grid(4)[:, None] * image.size
    results = []
    for precision in (None, dtype):
        predictor = SAMPredictor(model, dtype=precision)
        predictor.set_image(image)
        results.append(predictor(points=clicks))
    (masks, scores, _), (half_masks, half_scores, _) = results
    np.testing.assert_allclose(half_scores, scores, rtol=0, atol=0.02)
    union = (masks | half_masks).sum(axis=(2, 3))
    shared = (masks & half_masks).sum(axis=(2, 3))
    iou = np.where(union > 0, shared / np.maximum(union, 1), 1.0)  # two empty masks agree
    assert np.median(iou) > 0.98
    assert np.mean(iou > 0.9) > 0.9


def test_points_in_masks_found_already_can_be_left_out(fake, monkeypatch):
    parameters = {**LENIENT, "points_per_side": 12, "points_per_batch": 10}
    full = SAMAutomaticMaskGenerator(fake, **parameters).generate(picture())
    fake.decoded.clear()
    generator = SAMAutomaticMaskGenerator(fake, **parameters, skip_covered_points=True)
    finish, found = mask_generator.finish_masks, []
    monkeypatch.setattr(
        mask_generator,
        "finish_masks",
        lambda *args, **options: found.append(finish(*args, **options)) or found[-1],
    )
    records = generator.generate(picture())
    asked = np.concatenate([prompt["points"][:, 0] for prompt in fake.decoded])
    assert 10 < len(asked) < 100
    assert 0 < len(records) < len(full)
    covered = np.any([rle_to_mask(rle) for masks in found for rle in masks.rles], axis=0)
    for point in mask_ops.point_grid(12):
        # 70 x 110 fits into 128 x 96 as 61 x 96
        was_asked = np.isclose(asked, point * (96, 61), atol=1e-3).all(axis=1).any()
        x, y = (point * (110, 70)).astype(int)
        assert was_asked or covered[y, x]


# ---- progress


def test_progress_is_shown_when_asked_for(fake, capsys):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT, crop_n_layers=1)
    generator.generate(picture())
    list(generator.generate_batch([picture()]))
    assert capsys.readouterr().err == ""
    generator.generate(picture(), progress=True)
    assert "180/180" in capsys.readouterr().err  # 36 points in each of 5 crops
    list(generator.generate_batch([picture(), picture()], progress=True))
    assert "Images: 100%" in capsys.readouterr().err
    list(generator.generate_batch(iter([picture(), picture()]), progress=True))
    assert "Images: 2image" in capsys.readouterr().err


# ---- what a user gets wrong


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"points_per_batch": 0}, "points_per_batch must be at least 1, got 0"),
        ({"points_per_side": 0}, "at least 1 point a side, got 0"),
        ({"points_per_side": None}, "Exactly one of points_per_side and point_grids"),
        ({"point_grids": [np.zeros((1, 2))]}, "pass points_per_side=None"),
        ({"crop_n_layers": -1}, "crop_n_layers must be at least 0, got -1"),
        ({"crop_n_layers": 6, "crop_n_points_downscale_factor": 2}, "1 point a side, got 0"),
        ({"crop_n_points_downscale_factor": 0}, "downscale_factor must be at least 1, got 0"),
        ({"crop_overlap_ratio": 1.0}, r"crop_overlap_ratio must lie in \[0, 1\), got 1.0"),
        ({"crop_overlap_ratio": float("nan")}, "got nan"),
        ({"stability_score_offset": -1}, "stability_score_offset must be at least 0, got -1"),
        ({"min_mask_region_area": -5}, "min_mask_region_area must be at least 0, got -5"),
        ({"output_mode": "mask"}, "binary_mask, uncompressed_rle, coco_rle, got 'mask'"),
    ],
)
def test_parameters_that_make_no_sense(fake, parameters, message):
    with pytest.raises(ValueError, match=message):
        SAMAutomaticMaskGenerator(fake, **parameters)


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([np.zeros((4, 2))], "for each of 1 layers of crops, got 1"),
        ([np.zeros((4, 2)), np.zeros((4, 3))], r"shape \(n, 2\) and .*, got \(4, 3\)"),
        ([np.zeros((4, 2)), np.full((4, 2), 7.0)], "values from 7 to 7"),
        ([np.zeros((4, 2)), np.full((4, 2), np.nan)], "values from nan to nan"),
    ],
)
def test_grids_that_make_no_sense(fake, grids, message):
    with pytest.raises(ValueError, match=message):
        SAMAutomaticMaskGenerator(fake, points_per_side=None, point_grids=grids, crop_n_layers=1)


def test_scipy_is_missed_before_the_work(fake, monkeypatch):
    monkeypatch.setattr(mask_ops, "ndimage", None)
    with pytest.raises(ImportError, match="pip install scipy"):
        SAMAutomaticMaskGenerator(fake, min_mask_region_area=10)


def test_an_image_that_is_none(fake):
    generator = SAMAutomaticMaskGenerator(fake, **LENIENT)
    with pytest.raises(ValueError, match=r"got 'photo\.jpg'"):
        generator.generate("photo.jpg")
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        generator.generate(3)


def test_a_model_that_is_none():
    with pytest.raises(TypeError, match="Expected a SegmentAnythingModel"):
        SAMAutomaticMaskGenerator("sam_vit_t")
