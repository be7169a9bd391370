"""The loss that sam_vit_t learns from, against the package's."""

import pytest
import torch

from examples.training_loss import around_objects, mask_losses, quality_loss
from segment_anything_transformers.loss_segment_anything import loss_of_all_masks, mask_iou

SIZE_HW = (24, 20)


@pytest.fixture
def masks():
    """Logits, truth and scores of random masks; shares of pixels are among the truth."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, *SIZE_HW, generator=generator).mul_(3).requires_grad_()
    truth = torch.rand(2, 3, *SIZE_HW, generator=generator)
    truth[truth < 0.4] = 0.0
    truth[truth > 0.6] = 1.0
    return logits, truth, torch.rand(2, 3, 4, generator=generator)


def test_loss_and_gradient_are_those_of_the_package(masks):
    logits, truth, scores = masks
    near = torch.zeros_like(truth, dtype=torch.bool)
    near[:, :, 5:15, 3:12] = True
    regions = torch.stack([torch.ones_like(near), near], dim=2)
    loss, iou = mask_losses(logits, truth, regions)
    (gradient,) = torch.autograd.grad(loss, logits)
    whole = loss_of_all_masks(logits, scores, truth)
    nearby = loss_of_all_masks(logits, scores, torch.where(near, truth, -1.0))
    (expected,) = torch.autograd.grad(whole + nearby, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-8)
    target, known = (truth > 0.5)[:, :, None], torch.ones_like(near)[:, :, None]
    torch.testing.assert_close(iou, mask_iou(logits > 0, target, known))
    # the package's loss contains the error of the predicted quality, too
    no_error = loss_of_all_masks(logits, iou, truth)
    only_whole, _ = mask_losses(logits, truth, regions[:, :, :1])
    torch.testing.assert_close(only_whole, no_error)


def test_the_error_of_the_predicted_quality(masks):
    logits, truth, scores = masks
    _, iou = mask_losses(logits, truth, torch.ones_like(truth)[:, :, None])
    expected = loss_of_all_masks(logits, scores, truth) - loss_of_all_masks(logits, iou, truth)
    expected = expected + 4.0 * (scores - iou).square().mean()
    torch.testing.assert_close(quality_loss(scores, iou), expected)


def test_the_neighbourhood_reaches_as_far_as_the_object_is_long():
    boxes = torch.tensor([[[160.0, 160.0, 240.0, 200.0]]])  # 20 by 10 pixels of the masks
    near = around_objects((128, 128), boxes)[0, 0]
    rows, columns = near.nonzero(as_tuple=True)
    assert (columns.min(), columns.max()) == (17, 82)  # 40 - 23 to 60 + 23
    assert (rows.min(), rows.max()) == (17, 72)
    assert near.sum() == 66 * 56
