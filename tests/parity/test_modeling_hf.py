"""The PyTorch model against transformers' SamModel: same weights, same inputs, whole tensors."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from tests.parity.peers import huggingface_model
from tests.tiny import random_images, random_model, random_prompts, square_config

TOLERANCE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(scope="module")
def models():
    model = random_model(square_config())
    return model, huggingface_model(model)


@torch.no_grad()
def test_image_embeddings_equal_transformers(models):
    model, peer = models
    pixels = random_images(model.config)
    expected = peer.get_image_embeddings(pixels)
    assert_close(model.get_image_embeddings(pixels), expected, **TOLERANCE)


@pytest.mark.parametrize(("has_points", "has_box", "has_mask"), [*product((True, False), repeat=3)])
@pytest.mark.parametrize("multimask_output", [True, False])
@torch.no_grad()
def test_masks_equal_transformers(models, has_points, has_box, has_mask, multimask_output):
    model, peer = models
    prompts = random_prompts(model.config)
    inputs = {"pixel_values": random_images(model.config), "multimask_output": multimask_output}
    if has_points:
        inputs["input_points"] = prompts["input_points"]
        inputs["input_labels"] = prompts["input_labels"]
    if has_box:
        inputs["input_boxes"] = prompts["input_boxes"][:, :, 0]
    if has_mask:  # one for all prompt sets of an image
        inputs["input_masks"] = prompts["input_masks"][:, 0, :1]
    ours, theirs = model(**inputs), peer(**inputs)
    assert_close(ours.pred_masks, theirs.pred_masks, **TOLERANCE)
    assert_close(ours.iou_scores, theirs.iou_scores, **TOLERANCE)
