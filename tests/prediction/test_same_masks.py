"""On photographs, the masks of the fast generator are those of the plain one."""

import warnings

import numpy as np
import pytest
import skimage.data
import torch

from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
)
from segment_anything_transformers.model import mask_ops
from tests import plain

POINTS_PER_SIDE = 8
STABILITY = {"stability_score_thresh": 0.6, "stability_score_offset": 0.1}


@pytest.fixture(scope="module")
def model():
    return SegmentAnythingModel.from_pretrained("sam_vit_t").eval()


@pytest.fixture(scope="module", params=["astronaut", "chelsea", "coffee", "rocket"])
def photograph(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-image, on where its files lie
        return getattr(skimage.data, request.param)()


@pytest.fixture(scope="module")
def pred_iou_thresh(model, photograph):
    """Lets half of the masks pass, as sure of itself as the model may be."""
    predictor = SAMPredictor(model)
    predictor.set_image(photograph)
    return float(np.median(predictor.predict_logits(clicks(photograph)[:, None])[1]))


def clicks(image):
    return mask_ops.point_grid(POINTS_PER_SIDE) * image.shape[1::-1]


def found(model, image, pred_iou_thresh, **options):
    """Masks (n, H0, W0) and scores (n,) of our generator, the best first."""
    generator = SAMAutomaticMaskGenerator(
        model, POINTS_PER_SIDE, pred_iou_thresh=pred_iou_thresh, **options
    )
    records = generator.generate(image)
    masks = np.stack([record["segmentation"] for record in records])
    return masks, np.array([record["predicted_iou"] for record in records])


def ious(masks, others):
    """IoU of each mask with each other one, (n, m)."""
    flat, flat_others = (both.reshape(len(both), -1).astype(np.float32) for both in (masks, others))
    shared = flat @ flat_others.T
    return shared / (flat.sum(1)[:, None] + flat_others.sum(1) - shared)


@pytest.mark.slow
@torch.no_grad()
def test_masks_of_photographs_are_those_of_the_plain_form(model, photograph, pred_iou_thresh):
    masks, scores = found(model, photograph, pred_iou_thresh, **STABILITY)
    expected, expected_scores = plain.everything(
        model, photograph, clicks(photograph), pred_iou_thresh, *STABILITY.values(), 0.7
    )
    iou = ious(expected.numpy(), masks)
    matches = iou.argmax(axis=1)
    assert np.mean(iou.max(axis=1) >= 0.99) >= 0.995
    assert len(masks) == len(expected) >= 10
    assert (np.diff(matches) > 0).all()  # the same order
    np.testing.assert_allclose(scores[matches], expected_scores.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_masks_of_photographs_in_bfloat16(model, photograph, pred_iou_thresh):
    """Every mask is made in bfloat16 too; which of two near duplicates is kept may differ."""
    every_mask = {"box_nms_thresh": 1.0}
    masks, _ = found(model, photograph, pred_iou_thresh, **STABILITY, **every_mask)
    others, _ = found(
        model, photograph, 0, stability_score_thresh=0, **every_mask, dtype="bfloat16"
    )
    best = ious(masks, others).max(axis=1)
    assert np.median(best) >= 0.995
    assert np.mean(best >= 0.98) >= 0.95
    assert best.min() >= 0.96
