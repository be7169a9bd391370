"""Loss of promptable segmentation in Keras 3: the functions of the PyTorch file, in its order.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, section 3 and appendix A: focal loss
and dice loss, 20 to 1, for the best of several masks, plus the squared error of the predicted IoU.
"""

from typing import Any

import keras
from keras import ops

from .configuration_segment_anything import (
    DICE_WEIGHT,
    FOCAL_ALPHA,
    FOCAL_GAMMA,
    FOCAL_WEIGHT,
    IOU_WEIGHT,
)
from .mask_ops import area_matrix


def segmentation_loss(
    mask_logits: Any, iou_scores: Any, labels: Any, mask_threshold: float = 0.0
) -> Any:
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
    best = ops.min(mask_loss, axis=-1)
    iou = ops.stop_gradient(mask_iou(mask_logits > mask_threshold, truth > 0.5, known))
    quality = ops.mean(ops.square(ops.cast(iou_scores, "float32") - iou), axis=-1)
    counts = ops.cast(ops.any(known, axis=(-3, -2, -1)), "float32")  # (N, P)
    total = ops.sum((best + IOU_WEIGHT * quality) * counts)
    return total / ops.maximum(ops.sum(counts), 1.0)


def loss_of_all_masks(
    mask_logits: Any, iou_scores: Any, labels: Any, mask_threshold: float = 0.0
) -> Any:
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


def resize_labels(labels: Any, mask_logits: Any) -> tuple[Any, Any]:
    """True masks at the size of the logits, and where they are known.

    A low-resolution pixel that an object covers in part gets the covered share as its truth.

    Args:
        labels: (N, P, h, w); h and w have to be known when a graph is traced.
        mask_logits: (N, P, K, H', W').

    Returns:
        Truth in [0, 1], float32 (N, P, 1, H', W'), and a boolean mask of the same shape.
    """
    labels = ops.convert_to_tensor(labels)
    given, expected = tuple(labels.shape), tuple(mask_logits.shape[:2])
    fits = len(given) == 4 and all(
        None in pair or pair[0] == pair[1] for pair in zip(given, expected, strict=False)
    )
    if not fits or None in given[2:]:
        raise ValueError(
            f"labels must have the shape {(*expected, 'h', 'w')}, one true mask a prompt set, of "
            f"a size that is known, got {given}."
        )
    truth = ops.cast(labels, "float32")
    known = ops.cast(truth >= 0.0, "float32")
    truth = ops.maximum(truth, 0.0) * known
    size = tuple(mask_logits.shape[3:])
    if given[2:] != size:
        share = _resize_area(known, size)
        truth = _resize_area(truth, size) / ops.maximum(share, 1e-6)
        known = share
    return ops.minimum(truth, 1.0)[:, :, None], known[:, :, None] > 0.5


def _resize_area(values: Any, size_hw: tuple[int, int]) -> Any:
    """Values (N, P, h, w) at another size: means of the pixels that each new pixel touches."""
    by_row = ops.einsum("yh,nphw->npyw", area_matrix(values.shape[2], size_hw[0]), values)
    return ops.einsum("xw,npyw->npyx", area_matrix(values.shape[3], size_hw[1]), by_row)


def focal_loss(mask_logits: Any, truth: Any, known: Any) -> Any:
    """Focal loss (arXiv:1708.02002) of each mask, the mean over its known pixels: (N, P, K).

    A truth between 0 and 1 weighs its cross-entropy by the distance to the prediction, which is
    the usual focal loss where the truth is 0 or 1.

    Args:
        mask_logits: (N, P, K, H', W').
        truth: (N, P, 1, H', W') in [0, 1].
        known: (N, P, 1, H', W') boolean.
    """
    logits = ops.cast(mask_logits, "float32")
    known = ops.cast(known, "float32")
    cross_entropy = ops.softplus(logits) - logits * truth
    distance = ops.abs(truth - ops.sigmoid(logits)) ** FOCAL_GAMMA
    balance = FOCAL_ALPHA * truth + (1.0 - FOCAL_ALPHA) * (1.0 - truth)
    loss = balance * distance * cross_entropy * known
    return ops.sum(loss, axis=(-2, -1)) / ops.maximum(ops.sum(known, axis=(-2, -1)), 1.0)


def dice_loss(mask_logits: Any, truth: Any, known: Any) -> Any:
    """Dice loss (arXiv:1606.04797) of each mask over its known pixels: (N, P, K).

    Args:
        mask_logits: (N, P, K, H', W').
        truth: (N, P, 1, H', W') in [0, 1].
        known: (N, P, 1, H', W') boolean.
    """
    known = ops.cast(known, "float32")
    probabilities = ops.sigmoid(ops.cast(mask_logits, "float32")) * known
    truth = truth * known
    overlap = ops.sum(probabilities * truth, axis=(-2, -1))
    total = ops.sum(probabilities, axis=(-2, -1)) + ops.sum(truth, axis=(-2, -1))
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def mask_iou(masks: Any, truth: Any, known: Any) -> Any:
    """Intersection over union of boolean masks over the known pixels: (N, P, K).

    Two empty masks agree: 1.

    Args:
        masks: (N, P, K, H', W') boolean.
        truth: (N, P, 1, H', W') boolean.
        known: (N, P, 1, H', W') boolean.
    """
    both = ops.logical_and(ops.logical_and(masks, truth), known)
    either = ops.logical_and(ops.logical_or(masks, truth), known)
    intersection = ops.sum(ops.cast(both, "float32"), axis=(-2, -1))
    union = ops.sum(ops.cast(either, "float32"), axis=(-2, -1))
    return ops.where(union > 0.0, intersection / ops.maximum(union, 1.0), 1.0)


def correction_points(masks: Any, truth: Any, seed: Any = None) -> tuple[Any, Any]:
    """A click in the region where each mask is wrong (appendix A, simulated interaction).

    Args:
        masks: (N, P, h, w) boolean, as predicted.
        truth: (N, P, h, w) boolean.
        seed: Integer or `keras.random.SeedGenerator`; by default Keras' global generator.

    Returns:
        Points (N, P, 2), x before y, in pixels of the masks, uniform over the wrong pixels; and
        labels (N, P): 1 where the mask misses the object, 0 where it exceeds it. A mask without
        fault gets a point of the object (or of the background, if there is no object).
    """
    images, sets, height, width = ops.shape(masks)
    flat = (images, sets, height * width)
    wrong = ops.reshape(ops.logical_xor(masks, truth), flat)
    is_object = ops.reshape(truth, flat)
    candidates = ops.where(ops.any(wrong, axis=-1, keepdims=True), wrong, is_object)
    chance = keras.random.uniform(flat, seed=seed)
    position = ops.argmax(ops.where(candidates, chance, -chance), axis=-1)  # (N, P)
    labels = ops.take_along_axis(ops.cast(is_object, "int32"), position[..., None], axis=-1)
    points = ops.stack([position % width, position // width], axis=-1)
    return ops.cast(points, "float32"), labels[..., 0]
