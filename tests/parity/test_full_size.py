"""The full `sam_vit_b` against Meta's code and transformers': same weights, same inputs."""

import pytest
import torch
from torch.testing import assert_close

from segment_anything_transformers.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from tests.parity.peers import decode_with_meta, huggingface_model, meta_model
from tests.tiny import random_images, random_model, random_prompts

pytestmark = pytest.mark.slow


@torch.no_grad()
def test_full_sam_vit_b_equals_both_peers():
    model = random_model(SegmentAnythingModelConfig.from_preset("sam_vit_b"))
    sam, peer = meta_model(model), huggingface_model(model)
    pixels = random_images(model.config, count=1)
    embeddings = model.get_image_embeddings(pixels)
    # Twelve blocks of sums in another order: some of the million values, which go up to about 5,
    # differ by a little more than 1e-5, so here the tolerance grows with the value.
    assert_close(embeddings, sam.image_encoder(pixels), rtol=1e-5, atol=1e-5)
    assert_close(embeddings, peer.get_image_embeddings(pixels), rtol=0.0, atol=1e-4)

    prompts = random_prompts(model.config, images=1)
    points = {name: prompts[name] for name in ("input_points", "input_labels")}
    ours = model(image_embeddings=embeddings, **points)
    logits, scores = decode_with_meta(
        sam, embeddings[0], *(tensor[0] for tensor in points.values()), None, None, True
    )
    theirs = peer(image_embeddings=embeddings, **points)
    assert_close(ours.pred_masks[0], logits, rtol=0.0, atol=1e-5)
    assert_close(ours.iou_scores[0], scores, rtol=0.0, atol=1e-5)
    assert_close(ours.pred_masks, theirs.pred_masks, rtol=0.0, atol=1e-4)
    assert_close(ours.iou_scores, theirs.iou_scores, rtol=0.0, atol=1e-4)
