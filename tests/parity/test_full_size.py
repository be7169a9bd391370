"""The full `sam_vit_b` against Meta's code and transformers': same weights, same inputs."""

from itertools import product

import pytest
import torch
from torch.testing import assert_close

from segment_anything_transformers.model.configuration_segment_anything import (
    SegmentAnythingModelConfig,
)
from tests.parity.peers import decode_with_meta, huggingface_model, meta_model
from tests.tiny import random_images, random_model, random_prompts

pytestmark = pytest.mark.slow
SPARSE = ("input_points", "input_labels", "input_boxes")
KINDS = [
    ("input_points", "input_labels"),
    ("input_boxes",),
    ("input_masks",),
    ("input_boxes", "input_masks"),
]


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
    # All that both take: one box a prompt set, one mask an image.
    prompts["input_boxes"] = prompts["input_boxes"][:, :, 0]
    prompts["input_masks"] = prompts["input_masks"][:, 0, :1]
    for names, multimask_output in product(KINDS, (True, False)):
        given = {name: prompts[name] for name in names}
        inputs = {"image_embeddings": embeddings, "multimask_output": multimask_output, **given}
        ours, theirs = model(**inputs), peer(**inputs)
        sparse = (given[name][0] if name in given else None for name in SPARSE)
        logits, scores = decode_with_meta(
            sam, embeddings[0], *sparse, given.get("input_masks"), multimask_output
        )
        case = f"{', '.join(names)}, multimask_output={multimask_output}: {{}}".format
        assert_close(ours.pred_masks[0], logits, rtol=0.0, atol=1e-5, msg=case)
        assert_close(ours.iou_scores[0], scores, rtol=0.0, atol=1e-5, msg=case)
        assert_close(ours.pred_masks, theirs.pred_masks, rtol=0.0, atol=1e-4, msg=case)
        assert_close(ours.iou_scores, theirs.iou_scores, rtol=0.0, atol=1e-4, msg=case)
