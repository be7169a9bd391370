"""What `sam_vit_t` learns from: prompts and a loss for views of rendered scenes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segment_anything_transformers.model.configuration_segment_anything import (
    DICE_WEIGHT,
    FOCAL_WEIGHT,
    MASK_UPSCALING,
    PADDING,
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.model.loss_segment_anything import (
    correction_points,
    dice_loss,
    focal_loss,
    loss_of_all_masks,
    mask_iou,
)
from segment_anything_transformers.model.modeling_segment_anything import SegmentAnythingModel

DENSE_CHANNELS = 12
PATCH_SIZE = 16
NEIGHBOURHOOD = 3.0
"""What `around_objects` adds to an object's longer side, in pixels of the mask."""
MOST_CORRECTIONS = 4
"""Clicks after the first prompt. There is room for all of them, so that one compilation serves."""
QUALITY_WEIGHT = 4.0
"""Of the predicted IoU's error, beyond the weight of 1 in the paper's loss: the choice among three
masks is learned late otherwise."""
CHOICE_WEIGHT = 2.0
"""Of what the choice among the three masks costs."""
CHOICE_TEMPERATURE = 0.05
"""Difference of predicted IoU at which one of two masks is chosen e times as often."""


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
        truth: (N, P, H', W').
        boxes: (N, P, 4) in pixels of the view.
    """
    height, width = truth.shape[2:]
    left, top, right, bottom = (boxes * MASK_UPSCALING / PATCH_SIZE).unbind(-1)
    reach = torch.maximum(right - left, bottom - top) + NEIGHBOURHOOD
    rows = torch.arange(height, device=truth.device)[None, None, :, None] + 0.5
    columns = torch.arange(width, device=truth.device)[None, None, None] + 0.5
    left, top, right, bottom = (
        edge[..., None, None] for edge in (left - reach, top - reach, right + reach, bottom + reach)
    )
    near = (rows > top) & (rows < bottom) & (columns > left) & (columns < right)
    return torch.where(near, truth, -1.0)


def true_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """IoU (N, P, K) of masks (N, P, K, H', W') with the truth (N, P, H', W')."""
    target = truth[:, :, None] > 0.5
    return mask_iou(logits.detach() > 0.0, target, torch.ones_like(target))


def rating_loss(scores: Tensor, iou: Tensor) -> Tensor:
    """How wrong the predicted IoU is, and what the choice by it among the multiple masks costs.

    The first is the mean squared error. The second is the IoU that is lost against the best of the
    multiple masks, if one is drawn the more often the higher it is rated: of two masks that are
    nearly as good the error alone does not care which is rated higher.

    Args:
        scores: (..., 1 + K), predicted.
        iou: (..., 1 + K), real.
    """
    error = (scores.float() - iou).square().mean()
    chances = (scores[..., 1:].float() / CHOICE_TEMPERATURE).softmax(-1)
    lost = iou[..., 1:].amax(-1, keepdim=True) - iou[..., 1:]
    return QUALITY_WEIGHT * error + CHOICE_WEIGHT * (chances * lost).sum(-1).mean()


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


def loss_of_answers(logits: Tensor, scores: Tensor, truth: Tensor, boxes: Tensor) -> Tensor:
    """The paper's loss, the same near the objects, and the loss of the rating.

    Args:
        logits: (N, P, 1 + K, H', W').
        scores: (N, P, 1 + K).
        truth: (N, P, H', W') in [0, 1].
        boxes: (N, P, 4) of the objects, in pixels of the view.
    """
    near = around_objects(truth, boxes)
    loss = loss_of_all_masks(logits, scores, truth)
    loss = loss + loss_of_all_masks(logits, scores.detach(), near)
    return loss + rating_loss(scores, true_iou(logits, truth))


def training_loss(
    model: SegmentAnythingModel,
    head: nn.Module,
    batch: dict[str, Tensor],
    corrections: int,
    dense_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a batch: a click and a box for each object, and maybe correcting clicks.

    Args:
        model: The model.
        head: A `DenseHead`.
        batch: What `SceneDataset` gives, stacked.
        corrections: Number of clicks that each object gets where its mask is wrong, at most
            `MOST_CORRECTIONS`.
        dense_weight: Weight of the head's loss.

    Returns:
        The loss, and figures for the log.
    """
    pixels = normalise(batch["pixels"], batch["inside"], model.config)
    truth = batch["truth"].float() / 255.0
    embeddings = model.get_image_embeddings(pixels)
    dense_loss = head(embeddings, truth)
    truth, objects = truth.repeat(1, 2, 1, 1), batch["boxes"].repeat(1, 2, 1)
    prompts = first_prompts(batch["points"], batch["boxes"])
    logits, scores = model.decode(embeddings, *prompts)
    loss = loss_of_answers(logits, scores, truth, objects) + dense_weight * dense_loss
    figures = measure(logits.detach(), scores.detach(), truth)
    figures["dense_loss"] = dense_loss.detach()
    if corrections:
        some = either_prompt(len(pixels), truth.shape[1] // 2, pixels.device)
        answer = best_masks(logits, scores), *prompts, truth
        taken = [values[some] for values in answer]
        corrected = corrected_answers(model, embeddings, corrections, *taken)
        loss = loss + loss_of_answers(*corrected, truth[some], objects[some])
    return loss, figures


def either_prompt(images: int, objects: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices (N, P) each, of images and prompt sets: the click or the box of each object."""
    sets = torch.arange(objects, device=device)
    sets = sets + objects * torch.randint(2, (images, objects), device=device)
    return torch.arange(images, device=device)[:, None].expand_as(sets), sets


def best_masks(logits: Tensor, scores: Tensor) -> Tensor:
    """Logits (N, P, 1, H', W') of the masks that the model rates highest."""
    best = scores.argmax(2)[:, :, None, None, None]
    return logits.detach().take_along_dim(best, dim=2)


def corrected_answers(
    model: SegmentAnythingModel,
    embeddings: Tensor,
    corrections: int,
    masks: Tensor,
    points: Tensor,
    labels: Tensor,
    boxes: Tensor,
    truth: Tensor,
) -> tuple[Tensor, Tensor]:
    """Masks and scores after some clicks where the mask is wrong, with the mask before each.

    The answers before the last one build no gradients.

    Args:
        model: The model.
        embeddings: (N, D, H'', W'').
        corrections: Number of clicks.
        masks: (N, P, 1, H', W') logits of the masks to correct.
        points: (N, P, 1, 2) of the first prompts.
        labels: (N, P, 1) of theirs.
        boxes: (N, P, 4) of theirs.
        truth: (N, P, H', W') in [0, 1].
    """
    scale = PATCH_SIZE / MASK_UPSCALING
    points = F.pad(points, (0, 0, 0, MOST_CORRECTIONS), value=PADDING)
    labels = F.pad(labels, (0, MOST_CORRECTIONS), value=PADDING)
    for number in range(1, corrections + 1):
        xy, label = correction_points(masks[:, :, 0] > 0, truth > 0.5)
        points[:, :, number] = (xy + 0.5) * scale - 0.5  # the centre of the mask's pixel
        labels[:, :, number] = label
        if number < corrections:
            with torch.no_grad():
                masks, _ = model.decode(embeddings, points, labels, boxes, masks, slice(0, 1))
    return model.decode(embeddings, points, labels, boxes, masks)


@torch.no_grad()
def measure(logits: Tensor, scores: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Mean IoU for clicks and boxes: the single mask, and the best of three by own score."""
    iou = true_iou(logits, truth)
    picked = iou[:, :, 1:].take_along_dim(scores[:, :, 1:].argmax(2, keepdim=True), dim=2)
    half = iou.shape[1] // 2
    return {
        "click_single": iou[:, :half, 0].mean(),
        "click_best": picked[:, :half].mean(),
        "box_single": iou[:, half:, 0].mean(),
        "box_best": picked[:, half:].mean(),
    }
