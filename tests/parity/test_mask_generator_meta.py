"""Our mask generator against Meta's own, on the same logits: the same records."""

import importlib
import inspect
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from segment_anything_transformers.prediction.mask_generator import SAMAutomaticMaskGenerator
from tests.fake_backend import FakeBackend, click_logits, click_scores, small_config
from tests.parity.peers import meta_model
from tests.tiny import random_model, square_config

SIDE = 128
CONFIG = small_config(input_size=(SIDE, SIDE))


def box_area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes, scores, categories, iou_threshold):
    """torchvision's function for one category: greedy, stable, above the threshold suppressed."""
    assert not categories.any()
    keep = []
    for index in torch.sort(scores, descending=True, stable=True).indices:
        corners = torch.stack([boxes[index].expand(len(keep), 4), boxes[keep]])
        sides = corners[:, :, 2:].amin(dim=0) - corners[:, :, :2].amax(dim=0)
        intersection = sides.clamp(min=0).prod(dim=1)
        union = box_area(boxes[index][None]) + box_area(boxes[keep]) - intersection
        if not (intersection / union > iou_threshold).any():
            keep.append(int(index))
    return torch.tensor(keep, dtype=torch.long)


def stand_ins_for_torchvision():
    """The five modules and four functions of it that Meta's package uses."""
    names = ["", ".ops", ".ops.boxes", ".transforms", ".transforms.functional"]
    modules = {f"torchvision{name}": ModuleType(f"torchvision{name}") for name in names}
    modules["torchvision.ops.boxes"].batched_nms = batched_nms
    modules["torchvision.ops.boxes"].box_area = box_area
    functional = modules["torchvision.transforms.functional"]
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size_hw: image.resize(
        size_hw[::-1], Image.Resampling.BILINEAR
    )
    return modules


@pytest.fixture(scope="module")
def meta():
    """Meta's package, imported whole. Afterwards sys.modules is as it was before."""

    def loaded():
        return [name for name in sys.modules if name.partition(".")[0] == "segment_anything"]

    with pytest.MonkeyPatch.context() as patch:
        for name in loaded():
            patch.delitem(sys.modules, name)
        for name, module in stand_ins_for_torchvision().items():
            patch.setitem(sys.modules, name, module)
        package = importlib.import_module("segment_anything")
        for name in loaded():
            del sys.modules[name]
    return package


class FakeImageEncoder(torch.nn.Module):
    """As FakeBackend: the embedding of an image is its mean value."""

    img_size = SIDE

    def forward(self, images):
        return images.double().mean(dim=(1, 2, 3))


class FakePromptEncoder(torch.nn.Module):
    def forward(self, points, boxes, masks):
        return points[0][:, 0], None

    def get_dense_pe(self):
        return None


class FakeMaskDecoder(torch.nn.Module):
    def forward(self, image_embeddings, sparse_prompt_embeddings, multimask_output, **unused):
        assert multimask_output
        clicks = sparse_prompt_embeddings.numpy()
        logits = click_logits(clicks, CONFIG.mask_size(), (SIDE, SIDE), float(image_embeddings[0]))
        return torch.from_numpy(logits), torch.from_numpy(click_scores(clicks, (SIDE, SIDE)))


@pytest.fixture(scope="module")
def meta_generator(meta):
    """A function that makes Meta's generator around the same logits as FakeBackend's."""
    model = meta.modeling.Sam(FakeImageEncoder(), FakePromptEncoder(), FakeMaskDecoder())
    return lambda **parameters: meta.SamAutomaticMaskGenerator(model, **parameters)


def picture(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def compare(records, expected):
    """Every key of every record in order: masks and boxes equal, scores up to rounding."""
    assert len(records) == len(expected) > 0
    for record, expected_record in zip(records, expected, strict=True):
        assert record.keys() == expected_record.keys()
        for key, value in expected_record.items():
            if isinstance(value, np.ndarray):
                assert record[key].dtype == value.dtype
                np.testing.assert_array_equal(record[key], value)
            elif key in ("predicted_iou", "point_coords"):
                np.testing.assert_allclose(record[key], value, rtol=1e-6)
            else:
                assert record[key] == value, key


def both(meta_generator, size_hw, **parameters):
    """Our records and Meta's, with the same parameters."""
    image = picture(*size_hw)
    ours = SAMAutomaticMaskGenerator(FakeBackend(CONFIG), **parameters)
    return ours.generate(image), meta_generator(**parameters).generate(image)


LENIENT = {"points_per_side": 7, "pred_iou_thresh": 0.82, "stability_score_thresh": 0.75}


@pytest.mark.parametrize("size_hw", [(128, 128), (90, 160), (301, 170), (61, 40)])
def test_whole_images(meta_generator, size_hw):
    compare(*both(meta_generator, size_hw, **LENIENT))


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"points_per_batch": 10},
        {"pred_iou_thresh": 0.95},
        {"stability_score_thresh": 0.85},
        {"stability_score_offset": 0.4},
        {"box_nms_thresh": 0.3},
        {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
        {"points_per_side": None, "point_grids": [np.array([[0.2, 0.3], [0.9, 0.5], [0.5, 0.5]])]},
    ],
)
def test_each_parameter(meta_generator, parameters):
    compare(*both(meta_generator, (120, 170), **{**LENIENT, **parameters}))


@pytest.mark.slow
@pytest.mark.parametrize("size_hw", [(180, 240), (301, 170)])
@pytest.mark.parametrize(
    "parameters",
    [
        {"crop_n_layers": 1},
        {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
        {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "crop_overlap_ratio": 0.2},
        {"crop_n_layers": 1, "crop_nms_thresh": 0.3, "box_nms_thresh": 0.9},
    ],
)
def test_crops(meta_generator, size_hw, parameters):
    records, expected = both(meta_generator, size_hw, **{**LENIENT, **parameters})
    compare(records, expected)
    assert len({tuple(record["crop_box"]) for record in records}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("crop_n_layers", [0, 1])
@pytest.mark.parametrize("min_mask_region_area", [30, 300])
def test_small_regions(meta_generator, crop_n_layers, min_mask_region_area):
    parameters = {**LENIENT, "crop_n_layers": crop_n_layers}
    untouched, _ = both(meta_generator, (180, 240), **parameters)
    parameters["min_mask_region_area"] = min_mask_region_area
    records, expected = both(meta_generator, (180, 240), **parameters)
    compare(records, expected)
    assert [record["area"] for record in records] != [record["area"] for record in untouched]


@pytest.mark.parametrize("output_mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_forms_of_the_mask(meta_generator, output_mode):
    parameters = {**LENIENT, "crop_n_layers": 1, "output_mode": output_mode}
    compare(*both(meta_generator, (120, 170), **parameters))


def test_a_whole_model_of_the_same_weights(meta):
    """From the picture to the records, with nothing filtered and only rounding between them."""
    model = random_model(square_config())
    parameters = {
        "points_per_side": 4,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
        "crop_nms_thresh": 1.0,
        "crop_n_layers": 1,
    }
    image = picture(70, 110)
    records = SAMAutomaticMaskGenerator(model, **parameters).generate(image)
    expected = meta.SamAutomaticMaskGenerator(meta_model(model), **parameters).generate(image)
    assert len(records) == len(expected) > 20
    for record, expected_record in zip(records, expected, strict=True):
        assert record["crop_box"] == expected_record["crop_box"]
        for key in ("predicted_iou", "point_coords"):
            np.testing.assert_allclose(record[key], expected_record[key], rtol=0, atol=1e-5)
        different = record["segmentation"] != expected_record["segmentation"]
        assert different.mean() < 1e-3
    assert any(0.05 < record["segmentation"].mean() < 0.95 for record in records)


def test_parameters_and_defaults_are_metas(meta):
    expected = list(inspect.signature(meta.SamAutomaticMaskGenerator).parameters.values())
    ours = list(inspect.signature(SAMAutomaticMaskGenerator).parameters.values())
    assert [(parameter.name, parameter.default) for parameter in ours[: len(expected)]] == [
        (parameter.name, parameter.default) for parameter in expected
    ]
    own = ["preprocessing", "dtype", "skip_covered_points", "merge_crop_seams"]
    assert [parameter.name for parameter in ours[len(expected) :]] == own
