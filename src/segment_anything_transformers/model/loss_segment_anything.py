"""Loss of promptable segmentation in PyTorch.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, section 3 and appendix A: focal loss
and dice loss, 20 to 1, for the best of several masks, plus the squared error of the predicted IoU;
and training by simulated interaction.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .configuration_segment_anything import (
    BOX_NOISE,
    BOX_NOISE_LIMIT,
    DICE_WEIGHT,
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    FOCAL_WEIGHT,
    IOU_WEIGHT,
    PADDING,
)


def segmentation_loss(
    mask_logits: Tensor,
    iou_scores: Tensor,
    labels: Tensor,
    mask_threshold: float = 0.0,
    ignore_value: int | None = None,
) -> Tensor:
    """Loss of the best mask of each prompt set, and of the quality predicted for every mask.

    Args:
        mask_logits: (N, P, K, H', W').
        iou_scores: (N, P, K).
        labels: True masks at any resolution, as `read_labels` takes them. A prompt set without any
            known truth counts for nothing.
        mask_threshold: Logits above it belong to the mask.
        ignore_value: The value of labels where the truth is not known, besides negative ones.

    Returns:
        A scalar: the mean over the prompt sets.

    Raises:
        ValueError: The labels do not have one mask a prompt set, or values that make no sense.
    """
    truth, known = resize_labels(labels, mask_logits, ignore_value)
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


def read_labels(
    labels: Tensor, prompt_sets: int, ignore_value: int | None = None
) -> tuple[Tensor, Tensor]:
    """True masks of any form as numbers, and where they are known.

    Args:
        labels: (N, P, h, w), boolean, from 0 to 1, or 0 and 255. Or (N, h, w) instance ids, 0 for
            no object: the prompt sets mean the objects 1, 2, ... P. Negative where the truth is
            not known.
        prompt_sets: P.
        ignore_value: Another value that says that the truth is not known.

    Returns:
        Truth in [0, 1], float (N, P, h, w), and a boolean mask of the same shape.

    Raises:
        ValueError: The shape or the values are others.
    """
    is_ignored = torch.zeros_like(labels, dtype=torch.bool)
    if ignore_value is not None:
        is_ignored = labels == ignore_value
    known = ~((labels < 0) | is_ignored)  # NaN is no way to say unknown
    if labels.ndim == 3:
        if not torch.compiler.is_compiling():
            _check_ids(labels[known].float(), prompt_sets)
        ids = torch.arange(1, prompt_sets + 1, device=labels.device)[:, None, None]
        return (labels[:, None] == ids).float(), known[:, None].expand(-1, prompt_sets, -1, -1)
    if labels.ndim != 4 or labels.shape[1] != prompt_sets:
        raise ValueError(
            f"labels must have the shape {('N', prompt_sets, 'h', 'w')}, one true mask a prompt "
            f"set, or ('N', 'h', 'w') with instance ids, got {tuple(labels.shape)}."
        )
    truth = torch.where(known, labels.float(), 0.0)
    if labels.dtype != torch.bool and not torch.compiler.is_compiling():
        _check_truth(truth)
    return truth.clamp(max=1.0), known  # 255 is 1


def _check_ids(ids: Tensor, prompt_sets: int) -> None:
    is_id = (ids <= prompt_sets) & (ids == ids.floor())
    if not is_id.all():
        raise ValueError(
            "labels must be instance ids in the shape (N, h, w): 0 for no object, and the numbers "
            f"of the {prompt_sets} prompt sets from 1 on; got {ids[~is_id][0].item():g}. Masks "
            "that are 0 and 255, or shares, have an axis of prompt sets: (N, P, h, w)."
        )


def _check_truth(truth: Tensor) -> None:
    is_byte = truth == 255.0
    is_share = truth <= 1.0
    mixed = is_byte.any() & (is_share & (truth > 0.0)).any()
    if mixed or not (is_byte | is_share).all():
        raise ValueError(
            "labels must be boolean, from 0 to 1, or 0 and 255, and negative or ignore_value where "
            f"the truth is not known; got values up to {truth.max():g}. Instance ids go without "
            "the axis of prompt sets: (N, h, w)."
        )


def resize_labels(
    labels: Tensor, mask_logits: Tensor, ignore_value: int | None = None
) -> tuple[Tensor, Tensor]:
    """True masks at the size of the logits, and where they are known.

    A low-resolution pixel that an object covers in part gets the covered share as its truth.

    Args:
        labels: As for `read_labels`.
        mask_logits: (N, P, K, H', W').
        ignore_value: As for `read_labels`.

    Returns:
        Truth in [0, 1], float (N, P, 1, H', W'), and a boolean mask of the same shape.

    Raises:
        ValueError: See `read_labels`.
    """
    truth, is_known = read_labels(labels, mask_logits.shape[1], ignore_value)
    if truth.shape[0] != mask_logits.shape[0]:
        raise ValueError(
            f"labels must be those of {mask_logits.shape[0]} images, got {truth.shape[0]}."
        )
    known = is_known.float()
    truth = truth * known
    if truth.shape[2:] != mask_logits.shape[3:]:
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


# ---------------------------------------------------------------------- simulated interaction


def correction_points(
    masks: Tensor, truth: Tensor, known: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A click in the region where each mask is wrong (appendix A, simulated interaction).

    Args:
        masks: (N, P, h, w) boolean, as predicted.
        truth: (N, P, h, w) boolean.
        known: (N, P, h, w) boolean, where a click may be; everywhere by default.

    Returns:
        Points (N, P, 2), x before y, in pixels of the masks, uniform over the wrong pixels; and
        labels (N, P): 1 where the mask misses the object, 0 where it exceeds it. A mask without
        fault gets a point of the object (or of the background, if there is no object).
    """
    if known is None:
        known = torch.ones_like(truth)
    wrong = ((masks ^ truth) & known).flatten(2)
    is_object = truth.flatten(2)
    candidates = torch.where(wrong.any(-1, keepdim=True), wrong, is_object)
    chance = _uniform(candidates.shape, masks.device)
    position = torch.where(candidates, chance, -chance).argmax(-1)  # (N, P)
    labels = is_object.take_along_dim(position[..., None], dim=-1)[..., 0].long()
    width = masks.shape[-1]
    points = torch.stack([position % width, position // width], dim=-1)
    return points.float(), labels


def noisy_boxes(truth: Tensor, input_size: tuple[int, int]) -> Tensor:
    """Boxes (N, P, 4) as a person might draw them, in pixels of the model input.

    Each edge is off by a normal error: 10% of the box's side, at most 20 pixels (appendix A).

    Args:
        truth: (N, P, h, w) boolean, of any resolution. Of an empty mask the box is the whole image.
        input_size: (H, W) of the model input.
    """
    edges = []
    for axis, length in ((2, input_size[1]), (3, input_size[0])):
        touched = truth.any(axis).int()  # (N, P, w), then (N, P, h)
        pixels = touched.shape[-1]
        first = touched.argmax(-1)
        last = pixels - 1 - touched.flip(-1).argmax(-1)
        low = first.float() * (length / pixels)
        high = (last.float() + 1.0) * (length / pixels) - 1.0
        error = BOX_NOISE * (high - low) * _normal((2, *low.shape), truth.device)
        error = error.clamp(-BOX_NOISE_LIMIT, BOX_NOISE_LIMIT)
        noisy = (torch.stack([low, high]) + error).clamp(0.0, length - 1.0)
        edges.append(noisy.sort(0).values)
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=-1)


def first_prompts(
    truth: Tensor, known: Tensor, input_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """A click in each object or a noisy box around it, as likely one as the other.

    Args:
        truth: (N, P, h, w) boolean.
        known: (N, P, h, w) boolean.
        input_size: (H, W) of the model input.

    Returns:
        Points (N, P, 1, 2), labels (N, P, 1) and boxes (N, P, 4), in pixels of the model input;
        what a prompt set does not have is padding.
    """
    points, labels = correction_points(torch.zeros_like(truth), truth, known)
    points = _in_input(points, truth.shape[2:], input_size)
    boxes = noisy_boxes(truth, input_size)
    has_box = _uniform(labels.shape, truth.device) < 0.5
    points = torch.where(has_box[..., None], PADDING, points)
    labels = torch.where(has_box, PADDING, labels)
    boxes = torch.where(has_box[..., None], boxes, PADDING)
    return points[:, :, None], labels[:, :, None], boxes


def interactive_loss(
    decode: Callable[..., tuple[Tensor, Tensor]],
    labels: Tensor,
    input_size: tuple[int, int],
    mask_threshold: float = 0.0,
    clicks: int = 8,
    finished: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> Tensor:
    """Mean loss over the rounds of a simulated interaction (appendix A).

    First a click or a box, which may be ambiguous: the best of several masks learns, and the
    single one. Then `clicks` rounds with one more click each, where the mask is wrong, and with
    the last mask's logits; all the prompts together mean one object, and the single mask learns.
    Two more rounds bring no click, so that the model learns from its mask alone: one anywhere in
    between, one at the end. With 8 clicks that is 11 rounds.

    Args:
        decode: Logits (N, P, k, H', W') and scores (N, P, k) for points, labels, boxes, masks and
            a selection, as the model's `decode` takes them after the embeddings.
        labels: (N, P, h, w), as for `read_labels`.
        input_size: (H, W) of the model input.
        mask_threshold: Logits above it belong to the mask.
        clicks: Corrections; 0 leaves the first round alone.
        finished: Takes the loss of each round when it is known, and returns it as it is to be
            added: no later round has gradients in an earlier one.
    """
    truth, known = read_labels(labels, labels.shape[1])
    points, point_labels, boxes = first_prompts(truth > 0.5, known, input_size)
    logits, scores = decode(points, point_labels, boxes, None, slice(None))
    loss = finished(loss_of_all_masks(logits, scores, labels, mask_threshold))
    if clicks == 0:
        return loss
    target, is_known = (array[:, :, 0] for array in resize_labels(labels, logits))
    labels = torch.where(is_known, target, -1.0)
    last = clicks + 2
    pause = 1.0 + torch.floor(_uniform((), labels.device) * (clicks + 1))
    for number in range(1, last + 1):
        best = scores.argmax(2)[:, :, None, None, None]
        masks = logits.detach().take_along_dim(best, dim=2)  # (N, P, 1, H', W')
        click, label = correction_points(masks[:, :, 0] > mask_threshold, target > 0.5, is_known)
        is_click = (pause != number) & (number != last)
        click = torch.where(is_click, _in_input(click, labels.shape[2:], input_size), PADDING)
        label = torch.where(is_click, label, PADDING)
        points = torch.cat([points, click[:, :, None]], dim=2)
        point_labels = torch.cat([point_labels, label[:, :, None]], dim=2)
        logits, scores = decode(points, point_labels, boxes, masks, slice(0, 1))
        loss = loss + finished(segmentation_loss(logits, scores, labels, mask_threshold))
    return loss / (last + 1)


def _in_input(points: Tensor, size_hw: Sequence[int], input_size: tuple[int, int]) -> Tensor:
    """Pixels of a mask as points of the model input: centres stay centres."""
    scale = [length / pixels for length, pixels in zip(input_size, size_hw, strict=True)]
    return (points + 0.5) * torch.tensor(scale[::-1], device=points.device) - 0.5


def _uniform(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.rand(shape, device=device)


def _normal(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device)
