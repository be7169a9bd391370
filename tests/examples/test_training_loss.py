"""What `sam_vit_t` learns from: prompts, corrections, and where the loss looks."""

import numpy as np
import pytest
import torch
from torch import nn

from examples.training_loss import (
    CHOICE_WEIGHT,
    MOST_CORRECTIONS,
    QUALITY_WEIGHT,
    DenseHead,
    around_objects,
    rating_loss,
    training_loss,
    true_iou,
)
from examples.training_start import STARTS, EncoderShape, initial_model
from segment_anything_transformers import SegmentAnythingModelConfig
from segment_anything_transformers.model.configuration_segment_anything import PADDING

SIDE, MASK_SIDE = 64, 16
OBJECTS = np.zeros((1, 2, MASK_SIDE, MASK_SIDE), bool)
OBJECTS[0, 0, 2:9, 3:7] = True
OBJECTS[0, 1, 10:14, 8:15] = True


class Scripted(nn.Module):
    """Answers every prompt with the same logit everywhere, and remembers what it was asked."""

    def __init__(self, logit):
        super().__init__()
        self.config = SegmentAnythingModelConfig.from_preset("sam_vit_t", input_size=(SIDE, SIDE))
        self.logit = nn.Parameter(torch.tensor(logit))
        self.asked = []

    def get_image_embeddings(self, pixels):
        return torch.zeros(len(pixels), self.config.embed_dim, SIDE // 16, SIDE // 16)

    def decode(self, embeddings, points, labels, boxes, masks=None, selection=slice(None)):
        self.asked.append((points.clone(), labels.clone(), boxes, masks, torch.is_grad_enabled()))
        count = len(range(4)[selection])
        shape = (*labels.shape[:2], count, MASK_SIDE, MASK_SIDE)
        return self.logit * torch.ones(shape), 0.1 * self.logit * torch.ones(shape[:3])


@pytest.fixture
def batch():
    boxes = [[12.0, 8.0, 27.0, 35.0], [32.0, 40.0, 59.0, 55.0]]
    arrays = {
        "pixels": np.zeros((1, SIDE, SIDE, 3), np.uint8),
        "inside": np.array([[SIDE, SIDE]]),
        "truth": OBJECTS.astype(np.uint8) * 255,
        "points": np.array([[[20.0, 20.0], [40.0, 50.0]]], np.float32),
        "boxes": np.array([boxes], np.float32),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@pytest.mark.parametrize("logit", [-3.0, 3.0])
def test_clicks_correct_the_mask_so_far_and_the_last_learns(batch, logit):
    model = Scripted(logit)
    torch.manual_seed(0)
    loss, figures = training_loss(model, DenseHead(128), batch, corrections=3, dense_weight=1.0)
    assert [asked[-1] for asked in model.asked] == [True, False, False, True]
    first_points, first_labels, first_boxes, first_masks, _ = model.asked[0]
    assert first_masks is None
    assert first_points.shape == (1, 4, 1, 2)  # a click and a box an object
    assert (first_labels[:, :2] == 1).all()
    assert (first_boxes[:, 2:] == batch["boxes"]).all()
    assert (first_labels[:, 2:] == PADDING).all()
    for number, (points, labels, boxes, masks, _) in enumerate(model.asked[1:], 1):
        assert points.shape == (1, 2, 1 + MOST_CORRECTIONS, 2)
        assert masks.shape == (1, 2, 1, MASK_SIDE, MASK_SIDE)
        assert not masks.requires_grad
        has_box = (boxes != PADDING).any(-1)
        assert torch.equal(labels[..., 0] == PADDING, has_box)
        assert (labels[..., number + 1 :] == PADDING).all()
        # Nothing was found and the object is missing, or all was and the rest is too much.
        assert (labels[..., 1 : number + 1] == (logit < 0)).all()
        column, row = (points[0, :, number] / 4).long().unbind(-1)
        assert (OBJECTS[0, [0, 1], row, column] == (logit < 0)).all()
    loss.backward()
    assert model.logit.grad.isfinite()
    share = OBJECTS.mean((-2, -1)).mean() if logit > 0 else 0.0
    assert figures["click_best"] == pytest.approx(share)


def test_without_corrections_everything_is_decoded_once(batch):
    model = Scripted(1.0)
    training_loss(model, DenseHead(128), batch, corrections=0, dense_weight=1.0)
    assert len(model.asked) == 1


def test_the_neighbourhood_of_an_object_is_known():
    truth = torch.zeros(1, 1, MASK_SIDE, MASK_SIDE)
    truth[0, 0, 5:7, 6:8] = 1.0
    near = around_objects(truth, torch.tensor([[[24.0, 20.0, 32.0, 28.0]]]))
    # 2 pixels of the mask long: 2 + 3 more on each side are known.
    expected = torch.full_like(truth, -1.0)
    expected[0, 0, 0:12, 1:13] = truth[0, 0, 0:12, 1:13]
    assert torch.equal(near, expected)


def three_masks(*scores):
    """Logits of a single and three multiple masks of IoU 0, 0, 0.5 and 1, scores, and the truth."""
    truth = torch.zeros(1, 1, 8, 8)
    truth[..., :4, :] = 1.0
    logits = torch.full((1, 1, 4, 8, 8), -1.0)
    logits[:, :, 2, :2] = 1.0
    logits[:, :, 3, :4] = 1.0
    return logits, torch.tensor([[[0.0, *scores]]], requires_grad=True), truth


def test_a_right_rating_costs_nothing():
    logits, scores, truth = three_masks(0.0, 0.5, 1.0)
    assert rating_loss(scores, true_iou(logits, truth)).item() == pytest.approx(0.0, abs=1e-3)


def test_a_wrong_choice_costs_the_iou_that_it_loses():
    logits, scores, truth = three_masks(0.0, 1.5, 0.5)
    error = (1.0 + 0.25) / 4
    loss = rating_loss(scores, true_iou(logits, truth))
    assert loss.item() == pytest.approx(QUALITY_WEIGHT * error + CHOICE_WEIGHT * 0.5)


def test_of_two_masks_rated_alike_the_better_one_rises():
    logits, scores, truth = three_masks(0.0, 0.75, 0.75)  # the errors pull equally
    rating_loss(scores, true_iou(logits, truth)).backward()
    single, _, worse, better = scores.grad.flatten()
    assert single == 0
    assert worse == pytest.approx(-better)
    error_alone = QUALITY_WEIGHT * 2 * 0.25 / 4
    assert worse > 2 * error_alone


@pytest.mark.parametrize(
    ("shape", "heads", "in_global"),
    [
        (EncoderShape(width=96), 3, (1, 4, 7)),
        (EncoderShape(width=256, blocks=4), 8, (1, 3)),
        (EncoderShape(width=128, blocks=16), 4, (1, 4, 7, 9, 12, 15)),
        (EncoderShape(window=4), 6, (1, 4, 7)),
    ],
)
def test_a_model_of_another_shape(shape, heads, in_global):
    config = initial_model(None, None, "eager", shape).config
    assert config.encoder_embed_dim == shape.width
    assert config.encoder_nb_heads == heads
    assert config.encoder_nb_blocks == shape.blocks
    assert config.encoder_window_size == shape.window
    assert config.encoder_global_attn_indices == in_global


def test_the_usual_shape_is_that_of_the_preset():
    usual = SegmentAnythingModelConfig.from_preset("sam_vit_t")
    assert {name: getattr(usual, name) for name in EncoderShape().fields()} == (
        EncoderShape().fields()
    )


@pytest.mark.parametrize("random", [(), *[(start,) for start in STARTS], STARTS])
def test_what_is_left_random_starts_at_random(random):
    def weights(*random):
        torch.manual_seed(0)
        model = initial_model(None, None, "eager", random=random)
        return (
            model.image_encoder.patch_embed.proj.weight,
            model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix,
        )

    known, drawn = weights(), weights(*STARTS)
    for start, weight, one, other in zip(STARTS, weights(*random), known, drawn, strict=True):
        assert not one.equal(other)
        assert weight.equal(other if start in random else one)
