"""What `sam_vit_t` learns from: prompts and a loss for views of rendered scenes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segment_anything_transformers.configuration_segment_anything import (
    DICE_WEIGHT,
    FOCAL_WEIGHT,
    MASK_UPSCALING,
    PADDING,
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.loss_segment_anything import (
    correction_points,
    dice_loss,
    focal_loss,
    loss_of_all_masks,
    mask_iou,
)
from segment_anything_transformers.modeling_segment_anything import SegmentAnythingModel

DENSE_CHANNELS = 12
PATCH_SIZE = 16
NEIGHBOURHOOD = 3.0
"""What `around_objects` adds to an object's longer side, in pixels of the mask."""
QUALITY_WEIGHT = 4.0
"""Of the predicted IoU's error, beyond the weight of 1 in the paper's loss: the choice among three
masks is learned late otherwise."""


class DenseHead(nn.Module):
    """Tells objects apart by the image embeddings alone; only training uses it.

    Every pixel of a mask gets a few features. The mean over an object's true mask says which
    pixels are like it. The image encoder so learns what belongs together from its first step on,
    long before the decoder can locate a click.
    """

    def __init__(self, embed_dim: int) -> None:
        """Makes the features of pixels and the reading of an object's mean."""
        super().__init__()
        self.features = nn.Conv2d(embed_dim, DENSE_CHANNELS * MASK_UPSCALING**2, kernel_size=1)
        self.reading = nn.Linear(DENSE_CHANNELS, DENSE_CHANNELS + 1)

    def forward(self, image_embeddings: Tensor, truth: Tensor) -> Tensor:
        """Loss of the masks that the objects' mean features give.

        Args:
            image_embeddings: (N, D, H'', W'').
            truth: (N, P, H', W') in [0, 1].
        """
        features = F.pixel_shuffle(self.features(image_embeddings), MASK_UPSCALING).flatten(2)
        shares = truth.flatten(2)  # (N, P, L)
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=1e-6)
        means = shares.to(features.dtype) @ features.transpose(1, 2)  # (N, P, E)
        weights, bias = self.reading(means).split([DENSE_CHANNELS, 1], dim=-1)
        logits = (weights @ features + bias).unflatten(2, truth.shape[2:])[:, :, None]
        target = truth[:, :, None]
        known = torch.ones_like(target, dtype=torch.bool)
        focal, dice = focal_loss(logits, target, known), dice_loss(logits, target, known)
        return (FOCAL_WEIGHT * focal + DICE_WEIGHT * dice).mean()


def around_objects(truth: Tensor, boxes: Tensor) -> Tensor:
    """The truth near each object, and "not known" (-1) further away than its longer side.

    Beside the whole picture a small object's pixels count for almost nothing.

    Args:
        truth: (N, 2 P, H', W'), for a click and for a box on each of P objects.
        boxes: (N, P, 4) in pixels of the view.
    """
    height, width = truth.shape[2:]
    left, top, right, bottom = (boxes.repeat(1, 2, 1) * MASK_UPSCALING / PATCH_SIZE).unbind(-1)
    reach = torch.maximum(right - left, bottom - top) + NEIGHBOURHOOD
    rows = torch.arange(height, device=truth.device)[None, None, :, None] + 0.5
    columns = torch.arange(width, device=truth.device)[None, None, None] + 0.5
    left, top, right, bottom = (
        edge[..., None, None] for edge in (left - reach, top - reach, right + reach, bottom + reach)
    )
    near = (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
    return torch.where(near, truth, -1.0)


def quality_error(logits: Tensor, scores: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of the predicted IoU of every mask."""
    target = truth[:, :, None] > 0.5
    iou = mask_iou(logits.detach() > 0.0, target, torch.ones_like(target))
    return (scores.float() - iou).square().mean()


def normalise(pixels: Tensor, inside: Tensor, config: SegmentAnythingModelConfig) -> Tensor:
    """Pixel values (N, C, H, W) of uint8 images (N, H, W, C), zero in the padding."""
    mean = torch.tensor(config.channel_mean, device=pixels.device)
    std = torch.tensor(config.channel_std, device=pixels.device)
    values = (pixels / 255.0 - mean) / std
    rows = torch.arange(pixels.shape[1], device=pixels.device)
    is_row = rows[None, :, None] < inside[:, None, None, 0]
    is_column = rows[None, None, :] < inside[:, None, None, 1]
    return (values * (is_row & is_column)[..., None]).permute(0, 3, 1, 2).contiguous()


def first_prompts(points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Two prompt sets an object: a click, and a box. Points, labels and boxes, padded."""
    images, objects = points.shape[:2]
    nothing = torch.full_like(points, PADDING)
    all_points = torch.cat([points, nothing], dim=1)[:, :, None]
    labels = torch.ones(images, 2 * objects, 1, dtype=torch.long, device=points.device)
    labels[:, objects:] = PADDING
    all_boxes = torch.cat([torch.full_like(boxes, PADDING), boxes], dim=1)
    return all_points, labels, all_boxes


def training_loss(
    model: SegmentAnythingModel,
    head: nn.Module,
    batch: dict[str, Tensor],
    correct: bool,
    dense_weight: float,
) -> tuple[Tensor, dict[str, float]]:
    """Loss of a batch: a click and a box for each object, and maybe a correcting click.

    Args:
        model: The model.
        head: A `DenseHead`.
        batch: What `SceneDataset` gives, stacked.
        correct: Whether each object gets another click where its mask is wrong.
        dense_weight: Weight of the head's loss.

    Returns:
        The loss, and figures for the log.
    """
    pixels = normalise(batch["pixels"], batch["inside"], model.config)
    truth = batch["truth"].float() / 255.0
    embeddings = model.get_image_embeddings(pixels)
    dense_loss = head(embeddings, truth)
    truth = truth.repeat(1, 2, 1, 1)
    points, labels, boxes = first_prompts(batch["points"], batch["boxes"])
    logits, scores = model.decode(embeddings, points, labels, boxes)
    loss = loss_of_all_masks(logits, scores, truth) + dense_weight * dense_loss
    loss = loss + loss_of_all_masks(logits, scores.detach(), around_objects(truth, batch["boxes"]))
    loss = loss + QUALITY_WEIGHT * quality_error(logits, scores, truth)
    figures = measure(logits.detach(), scores.detach(), truth)
    figures["dense_loss"] = dense_loss.item()
    if not correct:
        return loss, figures
    best = logits.detach().take_along_dim(scores.argmax(2)[:, :, None, None, None], dim=2)
    click_xy, click_labels = correction_points(best[:, :, 0] > 0, truth > 0.5)
    click_xy = (click_xy + 0.5) * (pixels.shape[-1] / truth.shape[-1]) - 0.5  # the pixel's centre
    points = torch.cat([points, click_xy[:, :, None]], dim=2)
    labels = torch.cat([labels, click_labels[:, :, None]], dim=2)
    logits, scores = model.decode(embeddings, points, labels, boxes, best)
    return loss + loss_of_all_masks(logits, scores, truth), figures


@torch.no_grad()
def measure(logits: Tensor, scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Mean IoU for clicks and boxes: the single mask, and the best of three by own score."""
    masks, target = logits > 0, (truth > 0.5)[:, :, None]
    union = (masks | target).sum((-2, -1)).clamp(min=1)
    iou = (masks & target).sum((-2, -1)) / union  # (N, P, K + 1)
    picked = iou[:, :, 1:].take_along_dim(scores[:, :, 1:].argmax(2, keepdim=True), dim=2)
    half = iou.shape[1] // 2
    return {
        "click_single": iou[:, :half, 0].mean().item(),
        "click_best": picked[:, :half].mean().item(),
        "box_single": iou[:, half:, 0].mean().item(),
        "box_best": picked[:, half:].mean().item(),
    }
