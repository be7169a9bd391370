"""MobileSAM's own code, from PyPI, against our class with the same weights."""

import pytest
import torch
from torch.testing import assert_close

from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel
from segment_anything_transformers.model.weight_arrays import (
    fold_batch_norms,
    has_batch_norms,
    unfold_batch_norms,
)
from tests.parity.mobile_sam import random_mobile_sam
from tests.parity.peers import decode_with_meta

CLOSE = {"rtol": 0.0, "atol": 1e-4}
SMALL = (8, 12, 20, 320)
"""Widths that its code can have: the last merging keeps the grid because it has 320 channels."""


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@torch.no_grad()
def test_its_file_loads_and_gives_the_same(pixels, tmp_path):
    sam = random_mobile_sam()
    torch.save(sam.state_dict(), tmp_path / "mobile_sam.pt")
    model, info = SegmentAnythingModel.from_pretrained(
        tmp_path / "mobile_sam.pt", output_loading_info=True
    )
    assert (model.config.name, model.config.encoder_type) == ("mobile_sam", "tiny_vit")
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    embeddings = model.get_image_embeddings(pixels)
    assert_close(embeddings, sam.image_encoder(pixels), **CLOSE)
    assert_close(model.train().get_image_embeddings(pixels), embeddings, **CLOSE)
    points, labels = torch.tensor([[[300.0, 200.0], [640.0, 500.0]]]), torch.tensor([[1, 0]])
    boxes = torch.tensor([[100.0, 90.0, 700.0, 800.0]])
    output = model.eval()(
        image_embeddings=embeddings,
        input_points=points[None],
        input_labels=labels[None],
        input_boxes=boxes[None],
    )
    logits, scores = decode_with_meta(sam, embeddings[0], points, labels, boxes, None, True)
    assert_close(output.pred_masks[0], logits, **CLOSE)
    assert_close(output.iou_scores[0], scores, **CLOSE)


@pytest.mark.slow
@torch.no_grad()
def test_a_file_of_ours_loads_in_its_code_and_gives_the_same(pixels):
    sam = random_mobile_sam(SMALL)
    folded = fold_batch_norms(sam.state_dict())
    written = unfold_batch_norms(folded)
    again = random_mobile_sam(SMALL, seed=1)
    again.load_state_dict(written)  # strict: every name, the classifier's too
    expected = sam.image_encoder(pixels)
    assert_close(again.train().eval().image_encoder(pixels), expected, **CLOSE)


def test_folding_undoes_unfolding_in_torch_and_in_numpy():
    weights = random_mobile_sam(SMALL).state_dict()
    folded = fold_batch_norms(weights)
    assert has_batch_norms(weights)
    assert not has_batch_norms(folded)
    in_numpy = fold_batch_norms({name: w.numpy() for name, w in weights.items()})
    again = fold_batch_norms(unfold_batch_norms(folded))
    assert folded.keys() == in_numpy.keys() == again.keys()
    for name, array in folded.items():
        assert_close(torch.from_numpy(in_numpy[name]), array)
        assert_close(again[name], array)


def test_an_incomplete_batch_norm_is_named():
    weights = random_mobile_sam(SMALL).state_dict()
    del weights["image_encoder.layers.1.downsample.conv2.bn.running_mean"]
    with pytest.raises(ValueError, match=r"conv2 lacks .*conv2\.bn\.running_mean"):
        fold_batch_norms(weights)
