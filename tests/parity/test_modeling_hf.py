"""The PyTorch model against transformers' SamModel: same weights, same inputs, whole tensors."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import SamModel

from segment_anything_transformers import SegmentAnythingImageProcessor, SegmentAnythingProcessor
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


@pytest.mark.parametrize("asked", ["output_attentions", "output_hidden_states"])
@pytest.mark.parametrize("by_configuration", [True, False])
@torch.no_grad()
def test_what_is_kept_equals_transformers(asked, by_configuration):
    model = random_model(square_config())
    weights = huggingface_model(model)
    peer = SamModel._from_config(weights.config, attn_implementation="eager").eval()
    peer.load_state_dict(weights.state_dict())
    prompts = random_prompts(model.config)
    inputs = {
        "pixel_values": random_images(model.config),
        "input_points": prompts["input_points"],
        "input_labels": prompts["input_labels"],
    }
    plain = model(**inputs)
    assert (plain.vision_hidden_states, plain.vision_attentions) == (None, None)
    assert plain.mask_decoder_attentions is None
    theirs = peer(**inputs, **{asked: True})
    if by_configuration:
        model.set_attn_implementation("eager")  # Transformers' configurations insist on it
        setattr(model.config, asked, True)
        ours = model(**inputs)
        off = model(**inputs, **{asked: False})
        assert off.keys() == plain.keys()
    else:
        ours = model(**inputs, **{asked: True})
    kept = ours.keys() - plain.keys()
    assert kept == {name for name in theirs if name not in ("iou_scores", "pred_masks")}
    for name in kept:
        assert_close(ours[name], theirs[name], **TOLERANCE)
    assert_close(ours.pred_masks, plain.pred_masks, **TOLERANCE)
    names = {name.removeprefix("vision_") for name in kept} - {"mask_decoder_attentions"}
    (name,) = names
    alone = model.vision_encoder(inputs["pixel_values"], **{asked: True})
    assert_close(alone[name], ours[f"vision_{name}"], **TOLERANCE)
    assert_close(alone.last_hidden_state, plain.image_embeddings, **TOLERANCE)


@pytest.mark.parametrize("has_points", [True, False])
@torch.no_grad()
def test_personalised_prompts_equal_transformers(models, has_points):
    model, peer = models
    torch.manual_seed(5)
    prompts = random_prompts(model.config)
    grid_h, grid_w = model.grid_size()
    tokens = model.mask_decoder.masks_per_set + 1
    given = [None, None]
    if has_points:
        given = [prompts["input_points"], prompts["input_labels"]]
        tokens += given[0].shape[2] + 1
    similarity = torch.randn(1, 1, tokens, grid_h * grid_w)
    target = torch.randn(1, 1, 1, model.config.embed_dim)
    # In their order, without names.
    call = (random_images(model.config), *given, None, None, None, True, similarity, target)
    ours, theirs = model(*call), peer(*call)
    assert_close(ours.pred_masks, theirs.pred_masks, **TOLERANCE)
    assert_close(ours.iou_scores, theirs.iou_scores, **TOLERANCE)
    assert not torch.allclose(ours.pred_masks, model(*call[:7]).pred_masks, atol=1e-2)


@torch.no_grad()
def test_the_processors_output_is_the_models_input(models):
    model, peer = models
    processor = SegmentAnythingProcessor(SegmentAnythingImageProcessor.from_config(model.config))
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    points = [[[35, 20]], [[10, 40]]]
    inputs = processor(image, input_points=[points], return_tensors="pt")
    assert {"original_sizes", "reshaped_input_sizes"} < inputs.keys()
    ours, theirs = model(**inputs), peer(**inputs)
    assert_close(ours.pred_masks, theirs.pred_masks, **TOLERANCE)
    found = processor.post_process_masks(
        ours.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    assert found[0].shape == (2, 3, 50, 70)


@pytest.mark.parametrize("multimask_output", [True, False])
@torch.no_grad()
def test_parts_are_called_as_transformers_calls_its_own(models, multimask_output):
    model, peer = models
    prompts = random_prompts(model.config)
    points, labels = prompts["input_points"], prompts["input_labels"]
    positions = model.get_image_wide_positional_embeddings()
    assert_close(positions, peer.get_image_wide_positional_embeddings(), **TOLERANCE)
    tokens, dense = peer.get_prompt_embeddings(points, labels)
    call = {
        "image_embeddings": model.get_image_embeddings(random_images(model.config)),
        "image_positional_embeddings": positions.repeat(len(points), 1, 1, 1),
        "sparse_prompt_embeddings": tokens,
        "dense_prompt_embeddings": dense,
        "multimask_output": multimask_output,
    }
    for ours, theirs in zip(model.mask_decoder(**call), peer.mask_decoder(**call), strict=True):
        assert_close(ours, theirs, **TOLERANCE)
