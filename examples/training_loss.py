"""What `sam_vit_t` learns from: prompts and a loss for views of rendered scenes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segment_anything_transformers.configuration_segment_anything import (
    DICE_WEIGHT,
    FOCAL_ALPHA,
    FOCAL_WEIGHT,
    IOU_WEIGHT,
    MASK_UPSCALING,
    PADDING,
    SegmentAnythingModelConfig,
)
from segment_anything_transformers.loss_segment_anything import (
    correction_points,
    loss_of_all_masks,
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
        return mask_losses(logits, truth, torch.ones_like(truth)[:, :, None])[0]


class MaskLosses(torch.autograd.Function):
    """The mask losses of `mask_losses`, prompt set by prompt set, each with its gradient at once.

    What is made of a prompt set's masks stays in the cache, and only a gradient is kept of it.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, truth: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Takes (S, K, L), (S, L) and (S, R, L); returns the loss and the IoU (S, K)."""
        losses, qualities, gradients = [], [], torch.empty_like(logits)
        for index, given in enumerate(logits):
            with torch.enable_grad(), torch.autocast(logits.device.type, enabled=False):
                one = given.detach().float().requires_grad_()
                loss, iou = _losses_of_a_set(one, truth[index].float(), regions[index].float())
                gradients[index] = torch.autograd.grad(loss, one)[0]
            losses.append(loss.detach())
            qualities.append(iou)
        ctx.save_for_backward(gradients / len(losses))
        iou = torch.stack(qualities)
        ctx.mark_non_differentiable(iou)
        return torch.stack(losses).mean(), iou

    @staticmethod
    def backward(ctx, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        """The gradients that `forward` found."""
        (gradients,) = ctx.saved_tensors
        return gradients * loss_gradient, None, None


def _losses_of_a_set(logits: Tensor, truth: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Loss of the masks (K, L) of one prompt set, summed over regions (R, L); IoU (K)."""
    probabilities = logits.sigmoid()
    cross_entropy = F.softplus(logits) - logits * truth
    balance = FOCAL_ALPHA * truth + (1.0 - FOCAL_ALPHA) * (1.0 - truth)
    focal = balance * (truth - probabilities).square() * cross_entropy
    inside = regions * truth
    overlap, total = probabilities @ inside.T, probabilities @ regions.T + inside.sum(1)
    dice = 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)  # (K, R)
    loss = FOCAL_WEIGHT * (focal @ regions.T) / regions.sum(1) + DICE_WEIGHT * dice
    masks, target = logits.detach() > 0.0, truth > 0.5
    union = (masks | target).sum(1)
    iou = torch.where(union > 0, (masks & target).sum(1) / union.clamp(min=1), 1.0)
    best = loss[1:].amin(0).sum() if len(loss) > 1 else 0.0
    return loss[0].sum() + best, iou


def mask_losses(logits: Tensor, truth: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of the single mask and of the best of the others, the mean of all sets.

    Args:
        logits: (N, P, K, H', W'), the single mask first.
        truth: (N, P, H', W') in [0, 1].
        regions: (N, P, R, H', W'), 1 where the loss looks. It looks at each region by itself.

    Returns:
        The loss, summed over the regions; and the masks' IoU (N, P, K), without gradients.
    """
    flat = logits.flatten(3).flatten(0, 1), truth.flatten(2).flatten(0, 1)
    loss, iou = MaskLosses.apply(*flat, regions.flatten(3).flatten(0, 1))
    return loss, iou.unflatten(0, logits.shape[:2])


def around_objects(size_hw: tuple[int, int], boxes: Tensor) -> Tensor:
    """Where the neighbourhood of each object is, out to its longer side: (N, P, H', W') boolean.

    Beside the whole picture a small object's pixels count for almost nothing.

    Args:
        size_hw: Size (H', W') of the masks.
        boxes: (N, P, 4) in pixels of the view.
    """
    left, top, right, bottom = (boxes * MASK_UPSCALING / PATCH_SIZE).unbind(-1)
    reach = torch.maximum(right - left, bottom - top) + NEIGHBOURHOOD
    rows, columns = (torch.arange(length, device=boxes.device) + 0.5 for length in size_hw)
    left, top, right, bottom = (
        edge[..., None] for edge in (left - reach, top - reach, right + reach, bottom + reach)
    )
    is_row, is_column = (rows > top) & (rows < bottom), (columns > left) & (columns < right)
    return is_row[..., :, None] & is_column[..., None, :]


def quality_loss(scores: Tensor, iou: Tensor) -> Tensor:
    """Squared error of the predicted IoU, as in the paper, and once more with a larger weight."""
    errors = (scores.float() - iou).square()
    papers = errors[:, :, 0] + errors[:, :, 1:].mean(2)
    return IOU_WEIGHT * papers.mean() + QUALITY_WEIGHT * errors.mean()


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
    near = around_objects((truth.shape[2], truth.shape[3]), batch["boxes"])
    regions = torch.stack([torch.ones_like(near), near], dim=2).repeat(1, 2, 1, 1, 1)
    truth = truth.repeat(1, 2, 1, 1)
    points, labels, boxes = first_prompts(batch["points"], batch["boxes"])
    logits, scores = model.decode(embeddings, points, labels, boxes)
    loss, iou = mask_losses(logits, truth, regions)
    loss = loss + quality_loss(scores, iou) + dense_weight * dense_loss
    figures = measure(iou, scores.detach())
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


def measure(iou: Tensor, scores: Tensor) -> dict[str, float]:
    """Mean IoU for clicks and boxes: the single mask, and the best of three by own score."""
    picked = iou[:, :, 1:].take_along_dim(scores[:, :, 1:].argmax(2, keepdim=True), dim=2)
    half = iou.shape[1] // 2
    return {
        "click_single": iou[:, :half, 0].mean().item(),
        "click_best": picked[:, :half].mean().item(),
        "box_single": iou[:, half:, 0].mean().item(),
        "box_best": picked[:, half:].mean().item(),
    }
