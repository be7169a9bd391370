"""Loss of promptable segmentation in PyTorch.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, section 3 and appendix A: focal loss
and dice loss, 20 to 1, for the best of several masks, plus the squared error of the predicted IoU.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_segment_anything import (
    DICE_WEIGHT,
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    FOCAL_WEIGHT,
    IOU_WEIGHT,
)


def segmentation_loss(
    mask_logits: Tensor, iou_scores: Tensor, labels: Tensor, mask_threshold: float = 0.0
) -> Tensor:
    """Loss of the best mask of each prompt set, and of the quality predicted for every mask.

    Args:
        mask_logits: (N, P, K, H', W').
        iou_scores: (N, P, K).
        labels: (N, P, h, w) true masks at any resolution: boolean, or values in [0, 1]; negative
            where the truth is not known. A prompt set without any known truth counts for nothing.
        mask_threshold: Logits above it belong to the mask.

    Returns:
        A scalar: the mean over the prompt sets.

    Raises:
        ValueError: The labels do not have one mask a prompt set.
    """
    truth, known = resize_labels(labels, mask_logits)
    mask_loss = FOCAL_WEIGHT * focal_loss(mask_logits, truth, known)
    mask_loss = mask_loss + DICE_WEIGHT * dice_loss(mask_logits, truth, known)
    # One click may mean a part or the whole: only the best guess learns (section 3).
    best = mask_loss.amin(-1)
    with torch.no_grad():
        iou = mask_iou(mask_logits > mask_threshold, truth > 0.5, known)
    quality = (iou_scores.float() - iou).square().mean(-1)
    counts = known.flatten(2).any(-1)  # (N, P)
    total = ((best + IOU_WEIGHT * quality) * counts).sum()
    return total / counts.sum().clamp(min=1)


def loss_of_all_masks(
    mask_logits: Tensor, iou_scores: Tensor, labels: Tensor, mask_threshold: float = 0.0
) -> Tensor:
    """Loss of the single mask plus that of the best of the multiple ones.

    Args:
        mask_logits: (N, P, 1 + K, H', W'), the single mask first.
        iou_scores: (N, P, 1 + K).
        labels: As for `segmentation_loss`.
        mask_threshold: Logits above it belong to the mask.
    """
    single = segmentation_loss(mask_logits[:, :, :1], iou_scores[:, :, :1], labels, mask_threshold)
    multiple = segmentation_loss(
        mask_logits[:, :, 1:], iou_scores[:, :, 1:], labels, mask_threshold
    )
    return single + multiple


def resize_labels(labels: Tensor, mask_logits: Tensor) -> tuple[Tensor, Tensor]:
    """True masks at the size of the logits, and where they are known.

    A low-resolution pixel that an object covers in part gets the covered share as its truth.

    Args:
        labels: (N, P, h, w).
        mask_logits: (N, P, K, H', W').

    Returns:
        Truth in [0, 1], float (N, P, 1, H', W'), and a boolean mask of the same shape.
    """
    if labels.ndim != 4 or labels.shape[:2] != mask_logits.shape[:2]:
        raise ValueError(
            f"labels must have the shape {(*mask_logits.shape[:2], 'h', 'w')}, one true mask a "
            f"prompt set, got {tuple(labels.shape)}."
        )
    truth = labels.float()
    known = (truth >= 0).float()
    truth = truth.clamp(min=0.0) * known
    if labels.shape[2:] != mask_logits.shape[3:]:
        size = mask_logits.shape[3:]
        share = F.interpolate(known, size, mode="area")
        truth = F.interpolate(truth, size, mode="area") / share.clamp(min=1e-6)
        known = share
    return truth.clamp(max=1.0)[:, :, None], known[:, :, None] > 0.5


def focal_loss(mask_logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Focal loss (arXiv:1708.02002) of each mask, the mean over its known pixels: (N, P, K).

    A truth between 0 and 1 weighs its cross-entropy by the distance to the prediction, which is
    the usual focal loss where the truth is 0 or 1.

    Args:
        mask_logits: (N, P, K, H', W').
        truth: (N, P, 1, H', W') in [0, 1].
        known: (N, P, 1, H', W') boolean.
    """
    logits = mask_logits.float()
    truth_k = truth.expand_as(logits)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, truth_k, reduction="none")
    distance = (truth - logits.sigmoid()).abs() ** FOCAL_GAMMA
    balance = FOCAL_ALPHA * truth + (1.0 - FOCAL_ALPHA) * (1.0 - truth)
    loss = balance * distance * cross_entropy * known
    return loss.sum((-2, -1)) / known.sum((-2, -1)).clamp(min=1)


def dice_loss(mask_logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Dice loss (arXiv:1606.04797) of each mask over its known pixels: (N, P, K).

    Args:
        mask_logits: (N, P, K, H', W').
        truth: (N, P, 1, H', W') in [0, 1].
        known: (N, P, 1, H', W') boolean.
    """
    probabilities = mask_logits.float().sigmoid() * known
    truth = truth * known
    overlap = (probabilities * truth).sum((-2, -1))
    total = probabilities.sum((-2, -1)) + truth.sum((-2, -1))
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def mask_iou(masks: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """Intersection over union of boolean masks over the known pixels: (N, P, K).

    Two empty masks agree: 1.

    Args:
        masks: (N, P, K, H', W') boolean.
        truth: (N, P, 1, H', W') boolean.
        known: (N, P, 1, H', W') boolean.
    """
    intersection = (masks & truth & known).sum((-2, -1))
    union = ((masks | truth) & known).sum((-2, -1))
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.0)


def correction_points(masks: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """A click in the region where each mask is wrong (appendix A, simulated interaction).

    Args:
        masks: (N, P, h, w) boolean, as predicted.
        truth: (N, P, h, w) boolean.

    Returns:
        Points (N, P, 2), x before y, in pixels of the masks, uniform over the wrong pixels; and
        labels (N, P): 1 where the mask misses the object, 0 where it exceeds it. A mask without
        fault gets a point of the object (or of the background, if there is no object).
    """
    wrong = (masks ^ truth).flatten(2)
    is_object = truth.flatten(2)
    candidates = torch.where(wrong.any(-1, keepdim=True), wrong, is_object)
    chance = torch.rand(candidates.shape, device=masks.device)
    position = torch.where(candidates, chance, -chance).argmax(-1)  # (N, P)
    labels = is_object.take_along_dim(position[..., None], dim=-1)[..., 0].long()
    width = masks.shape[-1]
    points = torch.stack([position % width, position // width], dim=-1)
    return points.float(), labels
