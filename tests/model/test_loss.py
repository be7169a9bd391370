import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from segment_anything_transformers.model.loss_segment_anything import (
    correction_points,
    dice_loss,
    focal_loss,
    mask_iou,
    resize_labels,
    segmentation_loss,
)
from tests.fake_backend import small_config
from tests.tiny import random_images, random_model, random_prompts

N, P, K, H, W = 2, 3, 4, 6, 5


@pytest.fixture
def logits():
    return torch.randn(N, P, K, H, W, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture
def truth():
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(N, P, 1, H, W, generator=generator) > 0.6).float()


EVERYWHERE = torch.ones(N, P, 1, H, W, dtype=torch.bool)


def test_focal_loss_is_its_formula(logits, truth):
    p = logits.sigmoid()
    target = truth.expand_as(p)
    right = torch.where(target == 1, p, 1 - p)
    alpha = torch.where(target == 1, 0.25, 0.75)
    expected = (-alpha * (1 - right) ** 2 * right.log()).mean((-2, -1))
    assert_close(focal_loss(logits, truth, EVERYWHERE), expected)


def test_dice_loss_is_its_formula(logits, truth):
    p = logits.sigmoid().flatten(3)
    target = truth.expand_as(logits).flatten(3)
    expected = 1 - (2 * (p * target).sum(-1) + 1) / (p.sum(-1) + target.sum(-1) + 1)
    assert_close(dice_loss(logits, truth, EVERYWHERE), expected)


def test_perfect_masks_cost_nothing(truth):
    perfect = (truth * 2 - 1).expand(N, P, K, H, W) * 50
    loss = segmentation_loss(perfect, torch.ones(N, P, K), truth[:, :, 0])
    assert loss.item() < 1e-4


def test_only_the_best_mask_learns(logits, truth):
    logits = logits.requires_grad_()
    segmentation_loss(logits, torch.zeros(N, P, K), truth[:, :, 0]).backward()
    learning = logits.grad.abs().sum((-2, -1)) > 0
    assert learning.sum(-1).eq(1).all()
    cost = 20 * focal_loss(logits, truth, EVERYWHERE) + dice_loss(logits, truth, EVERYWHERE)
    assert torch.equal(learning.int().argmax(-1), cost.argmin(-1))


def test_every_quality_learns_the_iou_of_its_mask(logits, truth):
    scores = torch.zeros(N, P, K, requires_grad=True)
    segmentation_loss(logits, scores, truth[:, :, 0]).backward()
    iou = mask_iou(logits > 0, truth > 0.5, EVERYWHERE)
    assert_close(scores.grad, -2 * iou / (N * P * K))


@torch.no_grad()
def finite_differences(loss, point, step=1e-2):
    """Slopes of a loss in each number of a point."""
    bumps = step * torch.eye(point.numel()).view(-1, *point.shape)
    slopes = [(loss(point + bump) - loss(point - bump)) / (2 * step) for bump in bumps]
    return torch.stack(slopes).view_as(point)


@pytest.mark.parametrize("function", [focal_loss, dice_loss])
def test_gradients_agree_with_finite_differences(function, truth):
    logits = torch.randn(1, 1, 2, 3, 2, requires_grad=True)
    target, known = truth[:1, :1, :, :3, :2], EVERYWHERE[:1, :1, :, :3, :2]
    weights = torch.tensor([[[0.3, 0.7]]])

    def loss(given):
        return function(given, target, known).mul(weights).sum()

    loss(logits).backward()
    assert_close(logits.grad, finite_differences(loss, logits), rtol=1e-2, atol=1e-4)


def test_the_gradient_of_the_qualities_agrees_with_finite_differences(logits, truth):
    scores = torch.rand(N, P, K, requires_grad=True)

    def loss(given):
        return segmentation_loss(logits, given, truth[:, :, 0])

    loss(scores).backward()
    assert_close(scores.grad, finite_differences(loss, scores), rtol=1e-2, atol=1e-3)


def test_unknown_pixels_do_not_count(logits, truth):
    labels = truth[:, :, 0].clone()
    labels[..., 3:] = -1.0
    changed = logits.clone()
    changed[..., 3:] = 100.0
    scores = torch.rand(N, P, K)
    assert_close(
        segmentation_loss(logits, scores, labels), segmentation_loss(changed, scores, labels)
    )
    assert_close(
        segmentation_loss(logits, scores, labels),
        segmentation_loss(logits[..., :3], scores, labels[..., :3]),
    )


def test_prompt_sets_without_known_truth_do_not_count(logits, truth):
    labels, scores = truth[:, :, 0].clone(), torch.rand(N, P, K)
    labels[:, 1:] = -1.0
    expected = segmentation_loss(logits[:, :1], scores[:, :1], labels[:, :1])
    assert_close(segmentation_loss(logits, scores, labels), expected)
    nothing = segmentation_loss(logits, scores, torch.full_like(labels, -1.0))
    assert nothing.item() == 0.0


def test_labels_of_another_size_are_averaged_by_area(logits):
    labels = (torch.rand(N, P, 4 * H, 4 * W) > 0.5).float()
    truth, known = resize_labels(labels, logits)
    assert_close(truth[:, :, 0], F.avg_pool2d(labels, 4))
    assert known.all()
    whole, _ = resize_labels(labels > 0.5, logits)
    assert_close(whole, truth)


def test_empty_masks_agree():
    nothing = torch.zeros(N, P, K, H, W, dtype=torch.bool)
    iou = mask_iou(nothing, torch.zeros_like(EVERYWHERE), EVERYWHERE)
    assert torch.equal(iou, torch.ones(N, P, K))


def test_corrections_lie_where_the_mask_is_wrong(truth):
    target = truth[:, :, 0] > 0.5
    masks = torch.rand(N, P, H, W, generator=torch.Generator().manual_seed(2)) > 0.5
    for _ in range(20):
        points, labels = correction_points(masks, target)
        x, y = points.long().unbind(-1)
        image, index = torch.meshgrid(torch.arange(N), torch.arange(P), indexing="ij")
        assert (masks[image, index, y, x] != target[image, index, y, x]).all()
        assert torch.equal(labels == 1, target[image, index, y, x])
    points, labels = correction_points(target, target)
    x, y = points.long().unbind(-1)
    assert torch.equal(labels == 1, target[image, index, y, x])
    assert labels[target.any((-2, -1))].eq(1).all()


def test_the_model_overfits_a_batch():
    """`labels=` gives a loss that trains: everything at once, a few steps."""
    torch.manual_seed(0)
    model = random_model(small_config()).train()
    pixels, prompts = random_images(model.config), random_prompts(model.config)
    labels = torch.zeros(2, 3, 96, 64)
    labels[..., 20:60, 10:40] = 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = model(pixels, **prompts, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
