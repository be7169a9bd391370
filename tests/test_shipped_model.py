"""The weights inside the package."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from transformers import AutoModelForMaskGeneration, pipeline

from segment_anything_transformers import (
    SAMPredictor,
    SegmentAnythingModel,
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.model.checkpoints import WEIGHTS_FOLDER
from tests.generator_inputs import PHOTOGRAPH

FOLDER = WEIGHTS_FOLDER / "sam_vit_t"
SHAPES = {"landscape, 4:3": (300, 400), "portrait, 9:16": (640, 360), "larger": (1200, 900)}


@pytest.fixture(scope="module")
def model():
    return SegmentAnythingModel.from_pretrained("sam_vit_t")


def test_weights_take_at_most_12_megabytes():
    assert (FOLDER / "model.safetensors").stat().st_size <= 12e6


def test_weights_are_stored_in_half_and_computed_in_single_precision(model):
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}
    assert kinds == {"F16", "F32"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_configuration_is_the_presets(model):
    preset = SegmentAnythingModelConfig.from_preset("sam_vit_t")
    for field in SegmentAnythingModelConfig.__annotations__:
        assert getattr(model.config, field) == getattr(preset, field), field


def test_auto_classes_and_pipeline_load_the_folder(model):
    loaded = AutoModelForMaskGeneration.from_pretrained(FOLDER)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert pipeline("mask-generation", model=str(FOLDER)).image_processor.size


def test_origin_stands_beside_the_weights():
    text = (FOLDER / "README.md").read_text()
    for heading in ("Data", "Licence", "Command", "Quality"):
        assert f"## {heading}" in text


def two_discs(size_hw):
    """A picture of two discs on a plain ground, their masks and their centres (x, y)."""
    height, width = size_hw
    image = Image.new("RGB", (width, height), (60, 110, 70))
    draw = ImageDraw.Draw(image)
    radius = min(height, width) // 5
    centres = [(width // 4, height // 3), (3 * width // 4, 2 * height // 3)]
    y, x = np.ogrid[:height, :width]
    masks = []
    for (cx, cy), colour in zip(centres, ("#d8c23c", "#c8373c"), strict=True):
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=colour)
        masks.append((x - cx) ** 2 + (y - cy) ** 2 <= radius**2)
    return image, masks, centres


@pytest.mark.parametrize("size_hw", SHAPES.values(), ids=SHAPES.keys())
def test_the_mask_follows_the_click_and_has_the_images_size(model, size_hw):
    image, truths, centres = two_discs(size_hw)
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    for truth, centre in zip(truths, centres, strict=True):
        masks, scores, _ = predictor(points=np.array([centre]))
        mask = masks[scores.argmax()]
        assert mask.shape == size_hw
        assert (mask & truth).sum() / (mask | truth).sum() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("size_hw", SHAPES.values(), ids=SHAPES.keys())
def test_the_mask_follows_the_box(model, size_hw):
    image, truths, _ = two_discs(size_hw)
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    for truth in truths:
        rows, columns = np.flatnonzero(truth.any(1)), np.flatnonzero(truth.any(0))
        box = np.array([[columns[0], rows[0], columns[-1], rows[-1]]])
        [mask], _, _ = predictor(boxes=box, multimask_output=False)
        assert (mask & truth).sum() / (mask | truth).sum() > 0.7


@pytest.mark.parametrize(
    ("left", "width"), [(67, 533), (210, 225)], ids=["landscape, 4:3", "portrait, 9:16"]
)
def test_in_a_photograph_the_mask_follows_the_click(model, left, width):
    image = Image.open(PHOTOGRAPH).crop((left, 0, left + width, 400))
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    found = []
    for x, y in ((285, 130), (365, 290)):  # the coffee, and the spoon
        masks, scores, _ = predictor(points=np.array([(x - left, y)]))
        found.append(masks[scores.argmax()])
        assert found[-1].shape == (400, width)
        assert found[-1][y, x - left]
    assert not np.array_equal(*found)
    coffee, spoon = found
    assert (coffee & spoon).sum() / (coffee | spoon).sum() < 0.5
