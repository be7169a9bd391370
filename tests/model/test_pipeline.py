"""The mask-generation pipeline of transformers with our model, and ours where that one fails."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil
from transformers.pipelines import MaskGenerationPipeline

from segment_anything_transformers import SegmentAnythingImageProcessor, SegmentAnythingModel
from segment_anything_transformers.model import mask_ops
from segment_anything_transformers.model.pipeline_segment_anything import (
    SegmentAnythingMaskGenerationPipeline,
)
from tests.fake_backend import small_config

ALL_MASKS = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
"""A model with random weights is sure of nothing."""

SMALL = {"points_per_crop": 4, "points_per_batch": 5, **ALL_MASKS}
CLASSES = [MaskGenerationPipeline, SegmentAnythingMaskGenerationPipeline]


class DiscModel(SegmentAnythingModel):
    """Random weights make no objects: here each mask is a ragged disc around its point."""

    def forward(self, *args, input_points=None, **kwargs):
        output = super().forward(*args, input_points=input_points, **kwargs)
        logits = output.pred_masks
        rows, columns = (torch.arange(side) * 4 + 1.5 for side in logits.shape[-2:])
        x, y = input_points[:, :, :1, :, None, None].unbind(3)
        distance = torch.hypot(x - columns[None, :], y - rows[:, None])
        radius = torch.tensor([3.0, 8.0, 16.0])[:, None, None] + x % 5
        output.pred_masks = radius - distance + 6 * torch.sin(20 * logits)
        output.iou_scores = output.iou_scores.sin() / 4 + (x % 7)[..., 0, 0] / 30 + 0.6
        return output


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = small_config(input_size=(64, 64), encoder_patch_size=16)
    return DiscModel(config).eval()


@pytest.fixture(scope="module")
def image_processor(model):
    return SegmentAnythingImageProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    shapes = [(50, 80, 3), (70, 40, 3), (30, 31, 3)]
    return [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)) for shape in shapes]


def make_pipeline(model, image_processor, pipeline_class=None):
    options = {} if pipeline_class is None else {"pipeline_class": pipeline_class}
    return pipeline("mask-generation", model=model, image_processor=image_processor, **options)


def assert_equal_outputs(outputs, expected):
    assert outputs.keys() == expected.keys()
    assert len(outputs["masks"]) == len(expected["masks"]) > 0
    np.testing.assert_array_equal(outputs["masks"], expected["masks"])
    torch.testing.assert_close(outputs["scores"], expected["scores"], rtol=0, atol=1e-5)
    for name in set(outputs) - {"masks", "scores"}:
        assert np.array_equal(outputs[name], expected[name])


def plain_batched_nms(boxes, scores, idxs, iou_threshold):
    return torch.from_numpy(mask_ops.nms(boxes.numpy(), scores.numpy(), iou_threshold))


@pytest.fixture
def torchvision_stand_in(monkeypatch):
    boxes_module = ModuleType("torchvision.ops.boxes")
    boxes_module.batched_nms = plain_batched_nms
    for name in ("torchvision", "torchvision.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, boxes_module.__name__, boxes_module)


class TheirImageProcessor(SamImageProcessorPil):
    """Theirs, without the checks for torchvision, and with float32 points."""

    def generate_crop_boxes(self, *args, **kwargs):
        boxes, points, crops, labels = super().generate_crop_boxes(*args, **kwargs)
        return boxes, points.float(), crops, labels

    def post_process_for_mask_generation(self, *args):
        from transformers.models.sam import image_processing_pil_sam as module

        return module._post_process_for_mask_generation(*args)


@pytest.mark.parametrize("crops", [{}, {"crops_n_layers": 1, "crop_overlap_ratio": 0.3}])
@pytest.mark.usefixtures("torchvision_stand_in")
def test_everything_is_as_with_transformers_image_processor(model, image_processor, images, crops):
    theirs = TheirImageProcessor(
        size=dict(image_processor.size), pad_size=dict(image_processor.pad_size)
    )
    options = {**SMALL, **crops, "output_rle_mask": True, "output_bboxes_mask": True}
    expected = make_pipeline(model, theirs)(images[0], **options)
    assert len(expected["masks"]) > 3
    for pipeline_class in CLASSES:
        outputs = make_pipeline(model, image_processor, pipeline_class)(images[0], **options)
        assert_equal_outputs(outputs, expected)


@pytest.mark.parametrize("pipeline_class", CLASSES)
def test_thresholds_filter(model, image_processor, images, pipeline_class):
    generator = make_pipeline(model, image_processor, pipeline_class)
    everything = generator(images[0], **SMALL)["scores"]
    threshold = float(everything.median())
    filtered = generator(images[0], **{**SMALL, "pred_iou_thresh": threshold})["scores"]
    assert 0 < len(filtered) < len(everything)
    assert (filtered > threshold).all()


@pytest.mark.parametrize("pipeline_class", CLASSES)
def test_run_lengths_and_boxes_describe_the_masks(model, image_processor, images, pipeline_class):
    generator = make_pipeline(model, image_processor, pipeline_class)
    outputs = generator(images[0], **SMALL, output_rle_mask=True, output_bboxes_mask=True)
    for mask, rle, box in zip(
        outputs["masks"], outputs["rle_mask"], outputs["bounding_boxes"], strict=True
    ):
        assert mask.shape == (50, 80)
        np.testing.assert_array_equal(mask_ops.rle_to_mask(rle), mask)
        np.testing.assert_array_equal(mask_ops.masks_to_boxes(mask), box)


@pytest.mark.parametrize("points_per_batch", [1, 3, 16, 100, None])
def test_the_size_of_batches_of_points_does_not_matter(
    model, image_processor, images, points_per_batch
):
    generator = make_pipeline(model, image_processor)
    expected = generator(images[0], **SMALL)
    outputs = generator(images[0], **{**SMALL, "points_per_batch": points_per_batch})
    assert_equal_outputs(outputs, expected)


@pytest.mark.parametrize("with_images", [1, 2, 3])
def test_a_list_gives_what_each_image_gives(model, image_processor, images, with_images):
    generator = make_pipeline(model, image_processor)
    outputs = generator(images[:with_images], **SMALL)
    assert len(outputs) == with_images
    for output, image in zip(outputs, images, strict=False):
        assert_equal_outputs(output, generator(image, **SMALL))


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_runs(model, image_processor, images, half):
    try:
        generator = make_pipeline(model.to(half), image_processor)
        outputs = generator(images[0], **SMALL)
    finally:
        model.to(torch.float32)
    assert outputs["masks"][0].shape == (50, 80)


def test_a_folder_is_loaded_by_its_path(model, image_processor, images, tmp_path):
    torch.manual_seed(0)
    model = SegmentAnythingModel(model.config).eval()
    model.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    loaded = pipeline("mask-generation", model=str(tmp_path))
    assert type(loaded.model) is SegmentAnythingModel
    assert type(loaded.image_processor) is SegmentAnythingImageProcessor
    expected = make_pipeline(model, image_processor)(images[0], **SMALL)
    assert_equal_outputs(loaded(images[0], **SMALL), expected)


# ----------------------------------------------- what fails with transformers' own SAM there


def test_no_torchvision_is_needed(model, image_processor, images, monkeypatch):
    """Stock SAM asks for it after all the work is done."""
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert len(make_pipeline(model, image_processor)(images[0], **SMALL)["masks"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
@pytest.mark.parametrize("crops", [{}, {"crops_n_layers": 1}])
def test_batch_size_with_several_images(model, image_processor, images, batch_size, crops):
    """Transformers issue 37805: too many values to unpack. This takes our pipeline class."""
    generator = make_pipeline(model, image_processor, SegmentAnythingMaskGenerationPipeline)
    outputs = generator(images, batch_size=batch_size, **SMALL, **crops)
    assert len(outputs) == len(images)
    stock = make_pipeline(model, image_processor)
    for output, image in zip(outputs, images, strict=True):
        assert_equal_outputs(output, stock(image, **SMALL, **crops))


@pytest.mark.slow
@pytest.mark.parametrize("pipeline_class", CLASSES)
@pytest.mark.parametrize("layers", [1, 2])
def test_crops_with_fewer_points_than_the_image(
    model, image_processor, images, pipeline_class, layers
):
    """Transformers issue 35530: the grids of unequal length are stacked, and cannot be."""
    options = {**SMALL, "crops_n_layers": layers, "crop_n_points_downscale_factor": 2}
    generator = make_pipeline(model, image_processor, pipeline_class)
    outputs = generator(images[0], **options)
    expected = _by_hand(model, image_processor, images[0], layers)
    assert_equal_outputs(outputs, expected)


def _by_hand(model, image_processor, image, layers):
    """Every crop with its own grid of points, without any pipeline."""
    pixels = np.asarray(image)
    crops, crop_layers = mask_ops.crop_boxes(pixels.shape[:2], layers, 512 / 1500)
    grids = mask_ops.point_grids(4, layers, 2)
    found = []
    for crop, layer in zip(crops, crop_layers, strict=True):
        left, top, right, bottom = crop
        size = (bottom - top, right - left)
        inputs = image_processor(pixels[top:bottom, left:right], return_tensors="pt")
        resizer = image_processor.geometry().image_resizer(size)
        points = torch.from_numpy(resizer.scale_points(grids[layer] * size[::-1]))[None, :, None]
        with torch.no_grad():
            output = model(pixel_values=inputs["pixel_values"], input_points=points)
        logits = image_processor.post_process_masks(output.pred_masks, [size], binarize=False)
        scores = output.iou_scores[0]
        found.append(image_processor.filter_masks(logits[0], scores, (50, 80), crop, 0.0, 0.0))
    rles = [rle for rles, _, _ in found for rle in rles]
    scores, boxes = (torch.cat([part[index] for part in found]) for index in (1, 2))
    masks, scores, _, _ = image_processor.post_process_for_mask_generation(rles, scores, boxes, 0.7)
    return {"masks": masks, "scores": scores}


def test_our_pipeline_asks_the_model_for_no_point_twice(
    model, image_processor, images, monkeypatch
):
    calls = []
    forward = DiscModel.forward

    def counting(self, *args, input_points=None, **kwargs):
        calls.append(input_points.shape[1])
        return forward(self, *args, input_points=input_points, **kwargs)

    monkeypatch.setattr(DiscModel, "forward", counting)
    options = {**SMALL, "crops_n_layers": 1, "crop_n_points_downscale_factor": 2}
    n_points = {}
    for pipeline_class in CLASSES:
        calls.clear()
        make_pipeline(model, image_processor, pipeline_class)(images[0], **options)
        n_points[pipeline_class] = sum(calls)
    assert n_points == {CLASSES[0]: 5 * 16, CLASSES[1]: 16 + 4 * 4}


@pytest.mark.parametrize("pipeline_class", CLASSES)
@pytest.mark.parametrize("name", ["max_hole_area", "max_sprinkle_area"])
def test_holes_are_filled_and_sprinkles_removed(
    model, image_processor, images, pipeline_class, name
):
    """Stock SAM knows no such argument: TypeError."""
    generator = make_pipeline(model, image_processor, pipeline_class)
    options = {**SMALL, "crops_nms_thresh": 1.0}
    before, after = generator(images[0], **options), generator(images[0], **options, **{name: 40})
    assert len(before["masks"]) == len(after["masks"])
    changed = 0
    mode = "holes" if name == "max_hole_area" else "islands"
    for mask, cleaned in zip(before["masks"], after["masks"], strict=True):
        expected, has_changed = mask_ops.remove_small_regions(mask, 41, mode)
        np.testing.assert_array_equal(cleaned, expected)
        changed += has_changed
    assert changed > 0
