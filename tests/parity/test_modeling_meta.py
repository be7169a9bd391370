"""The PyTorch model against Meta's own code: same weights, same inputs, whole tensors."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from tests.parity.peers import decode_with_meta, meta_model
from tests.tiny import random_images, random_model, random_prompts, square_config

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
KINDS = [kinds for kinds in product((True, False), repeat=3)]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def models(request):
    model = random_model(square_config())
    model.set_attn_implementation(request.param)
    return model, meta_model(model)


@torch.no_grad()
def test_image_embeddings_equal_metas(models):
    model, sam = models
    pixels = random_images(model.config)
    assert_close(model.get_image_embeddings(pixels), sam.image_encoder(pixels), **TOLERANCE)


@pytest.mark.parametrize(("has_points", "has_box", "has_mask"), KINDS)
@pytest.mark.parametrize("multimask_output", [True, False])
@torch.no_grad()
def test_masks_equal_metas(models, has_points, has_box, has_mask, multimask_output):
    model, sam = models
    embeddings = sam.image_encoder(random_images(model.config))
    prompts = random_prompts(model.config)
    points = prompts["input_points"] if has_points else None
    labels = prompts["input_labels"] if has_points else None
    boxes = prompts["input_boxes"][:, :, :1] if has_box else None
    masks = prompts["input_masks"][:, :, :1] if has_mask else None
    output = model(
        image_embeddings=embeddings,
        input_points=points,
        input_labels=labels,
        input_boxes=boxes,
        input_masks=masks,
        multimask_output=multimask_output,
    )
    for image in range(len(embeddings)):
        logits, scores = decode_with_meta(
            sam,
            embeddings[image],
            *(None if tensor is None else tensor[image] for tensor in (points, labels)),
            None if boxes is None else boxes[image, :, 0],
            None if masks is None else masks[image],
            multimask_output,
        )
        assert_close(output.pred_masks[image], logits, **TOLERANCE)
        assert_close(output.iou_scores[image], scores, **TOLERANCE)


@torch.no_grad()
def test_prompt_embeddings_equal_metas(models):
    model, sam = models
    prompts = random_prompts(model.config)
    one = {**prompts, "input_boxes": prompts["input_boxes"][:, :, 0]}
    one["input_masks"] = prompts["input_masks"][:, :, :1]
    tokens, dense = model.get_prompt_embeddings(**one)
    for image in range(2):
        points = (prompts["input_points"][image], prompts["input_labels"][image])
        expected = sam.prompt_encoder(points, one["input_boxes"][image], one["input_masks"][image])
        assert_close(tokens[image], expected[0], **TOLERANCE)
        assert_close(dense[image], expected[1], **TOLERANCE)


@pytest.mark.parametrize(("has_points", "has_box", "has_mask"), KINDS)
@pytest.mark.parametrize("multimask_output", [True, False])
@torch.no_grad()
def test_parts_are_called_as_metas(models, has_points, has_box, has_mask, multimask_output):
    model, sam = models
    prompts = {name: tensor[0] for name, tensor in random_prompts(model.config).items()}
    given = {
        "points": (prompts["input_points"], prompts["input_labels"]) if has_points else None,
        "boxes": prompts["input_boxes"][:, 0] if has_box else None,
        "masks": prompts["input_masks"][:, :1] if has_mask else None,
    }
    embeddings = model.image_encoder(random_images(model.config, count=1))
    found = []
    for network in (model, sam):
        sparse, dense = network.prompt_encoder(**given)
        positions = network.prompt_encoder.get_dense_pe()
        masks = network.mask_decoder(
            image_embeddings=embeddings,
            image_pe=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        found.append((sparse, dense, positions, *masks))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, **TOLERANCE)


@torch.no_grad()
def test_a_batch_of_images_with_a_box_each_is_decoded_as_medsam_does(models):
    model, sam = models
    boxes = random_prompts(model.config)["input_boxes"][:, 0, 0]  # (N, 4)
    embeddings = model.image_encoder(random_images(model.config))
    sparse, dense = model.prompt_encoder(points=None, boxes=boxes[:, None], masks=None)
    positions = model.prompt_encoder.get_dense_pe()
    masks, scores = model.mask_decoder(
        image_embeddings=embeddings,
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    for image, box in enumerate(boxes):
        expected = decode_with_meta(sam, embeddings[image], None, None, box[None], None, False)
        assert_close(masks[image], expected[0][0], **TOLERANCE)
        assert_close(scores[image], expected[1][0], **TOLERANCE)


@torch.no_grad()
def test_widths_that_the_layers_divide_are_rounded_down_as_by_meta():
    """As in tfimm's own test configuration, whose embeddings are 12 wide."""
    model = random_model(
        square_config(
            embed_dim=12, decoder_nb_heads=3, prompt_mask_hidden_dim=6, input_size=(64, 64)
        )
    )
    sam = meta_model(model)
    pixels, prompts = random_images(model.config, count=1), random_prompts(model.config, images=1)
    prompts["input_boxes"] = prompts["input_boxes"][:, :, :1]
    prompts["input_masks"] = prompts["input_masks"][:, :, :1]
    output = model(pixels, **prompts)
    logits, scores = decode_with_meta(
        sam,
        sam.image_encoder(pixels)[0],
        prompts["input_points"][0],
        prompts["input_labels"][0],
        prompts["input_boxes"][0, :, 0],
        prompts["input_masks"][0],
        True,
    )
    assert_close(output.pred_masks[0], logits, **TOLERANCE)
    assert_close(output.iou_scores[0], scores, **TOLERANCE)
