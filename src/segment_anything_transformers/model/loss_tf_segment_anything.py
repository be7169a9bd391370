"""Loss of promptable segmentation in Keras 3: the functions of the PyTorch file, in its order.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, section 3 and appendix A: focal loss
and dice loss, 20 to 1, for the best of several masks, plus the squared error of the predicted IoU;
and training by simulated interaction.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

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
from .mask_ops import area_matrix


def segmentation_loss(
    mask_logits: Any,
    iou_scores: Any,
    labels: Any,
    mask_threshold: float = 0.0,
    ignore_value: int | None = None,
) -> Any:
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


def read_labels(labels: Any, prompt_sets: int, ignore_value: int | None = None) -> tuple[Any, Any]:
    """True masks of any form as numbers, and where they are known.

    Args:
        labels: (N, P, h, w), boolean, from 0 to 1, or 0 and 255. Or (N, h, w) instance ids, 0 for
            no object: the prompt sets mean the objects 1, 2, ... P. Negative where the truth is
            not known. h and w have to be known when a graph is traced, where values are not
            checked: `check_values` does that for arrays.
        prompt_sets: P.
        ignore_value: Another value that says that the truth is not known.

    Returns:
        Truth in [0, 1], float32 (N, P, h, w), and a boolean mask of the same shape.

    Raises:
        ValueError: The shape or the values are others.
    """
    labels = ops.convert_to_tensor(labels)
    shape = tuple(labels.shape)
    is_masks = len(shape) == 4 and shape[1] in (prompt_sets, None) and None not in shape[2:]
    if len(shape) != 3 and not is_masks:
        raise ValueError(
            f"labels must have the shape {('N', prompt_sets, 'h', 'w')}, one true mask a prompt "
            f"set, of a size that is known, or ('N', 'h', 'w') with instance ids, got {shape}."
        )
    if hasattr(labels, "numpy"):
        check_values(ops.convert_to_numpy(labels), prompt_sets, ignore_value)
    values = ops.cast(labels, "float32")
    is_ignored = ops.zeros_like(values, dtype="bool")
    if ignore_value is not None:
        is_ignored = values == ignore_value
    known = ops.logical_not(ops.logical_or(values < 0.0, is_ignored))
    if not is_masks:
        ids = ops.cast(ops.arange(1, prompt_sets + 1)[:, None, None], "float32")
        truth = ops.cast(values[:, None] == ids, "float32")
        return truth, ops.logical_and(known[:, None], ops.ones_like(truth, dtype="bool"))
    return ops.minimum(ops.where(known, values, 0.0), 1.0), known  # 255 is 1


def check_values(labels: np.ndarray, prompt_sets: int, ignore_value: int | None = None) -> None:
    """Refuses true masks whose values `read_labels` cannot mean.

    Args:
        labels: As for `read_labels`.
        prompt_sets: P.
        ignore_value: As for `read_labels`.

    Raises:
        ValueError: The values are others.
    """
    is_ignored = False if ignore_value is None else labels == ignore_value
    known = ~((labels < 0) | is_ignored)  # NaN is no way to say unknown
    if labels.ndim == 3:
        _check_ids(labels[known], prompt_sets)
    elif labels.dtype != bool:
        _check_truth(np.where(known, labels, 0))


def _check_ids(ids: np.ndarray, prompt_sets: int) -> None:
    is_id = (ids <= prompt_sets) & (ids == np.floor(ids))
    if not is_id.all():
        raise ValueError(
            "labels must be instance ids in the shape (N, h, w): 0 for no object, and the numbers "
            f"of the {prompt_sets} prompt sets from 1 on; got {ids[~is_id][0]:g}. Masks "
            "that are 0 and 255, or shares, have an axis of prompt sets: (N, P, h, w)."
        )


def _check_truth(truth: np.ndarray) -> None:
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
    labels: Any, mask_logits: Any, ignore_value: int | None = None
) -> tuple[Any, Any]:
    """True masks at the size of the logits, and where they are known.

    A low-resolution pixel that an object covers in part gets the covered share as its truth.

    Args:
        labels: As for `read_labels`.
        mask_logits: (N, P, K, H', W').
        ignore_value: As for `read_labels`.

    Returns:
        Truth in [0, 1], float32 (N, P, 1, H', W'), and a boolean mask of the same shape.

    Raises:
        ValueError: See `read_labels`.
    """
    truth, is_known = read_labels(labels, mask_logits.shape[1], ignore_value)
    if len({truth.shape[0], mask_logits.shape[0]} - {None}) > 1:
        raise ValueError(
            f"labels must be those of {mask_logits.shape[0]} images, got {truth.shape[0]}."
        )
    known = ops.cast(is_known, "float32")
    truth = truth * known
    size = tuple(mask_logits.shape[3:])
    if tuple(truth.shape[2:]) != size:
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


# ---------------------------------------------------------------------- simulated interaction


def correction_points(
    masks: Any, truth: Any, known: Any = None, seed: Any = None
) -> tuple[Any, Any]:
    """A click in the region where each mask is wrong (appendix A, simulated interaction).

    Args:
        masks: (N, P, h, w) boolean, as predicted.
        truth: (N, P, h, w) boolean.
        known: (N, P, h, w) boolean, where a click may be; everywhere by default.
        seed: Integer or `keras.random.SeedGenerator`; by default Keras' global generator.

    Returns:
        Points (N, P, 2), x before y, in pixels of the masks, uniform over the wrong pixels; and
        labels (N, P): 1 where the mask misses the object, 0 where it exceeds it. A mask without
        fault gets a point of the object (or of the background, if there is no object).
    """
    if known is None:
        known = ops.ones_like(truth)
    images, sets, height, width = ops.shape(masks)
    flat = (images, sets, height * width)
    wrong = ops.reshape(ops.logical_and(ops.logical_xor(masks, truth), known), flat)
    is_object = ops.reshape(truth, flat)
    candidates = ops.where(ops.any(wrong, axis=-1, keepdims=True), wrong, is_object)
    chance = _uniform(flat, seed)
    position = ops.argmax(ops.where(candidates, chance, -chance), axis=-1)  # (N, P)
    labels = ops.take_along_axis(ops.cast(is_object, "int32"), position[..., None], axis=-1)
    points = ops.stack([position % width, position // width], axis=-1)
    return ops.cast(points, "float32"), labels[..., 0]


def noisy_boxes(truth: Any, input_size: tuple[int, int], seed: Any = None) -> Any:
    """Boxes (N, P, 4) as a person might draw them, in pixels of the model input.

    Each edge is off by a normal error: 10% of the box's side, at most 20 pixels (appendix A).

    Args:
        truth: (N, P, h, w) boolean, of any resolution. Of an empty mask the box is the whole image.
        input_size: (H, W) of the model input.
        seed: As for `correction_points`.
    """
    edges = []
    for axis, length in ((2, input_size[1]), (3, input_size[0])):
        touched = ops.cast(ops.any(truth, axis=axis), "int32")  # (N, P, w), then (N, P, h)
        pixels = touched.shape[-1]
        first = ops.argmax(touched, axis=-1)
        last = pixels - 1 - ops.argmax(ops.flip(touched, axis=-1), axis=-1)
        low = ops.cast(first, "float32") * (length / pixels)
        high = (ops.cast(last, "float32") + 1.0) * (length / pixels) - 1.0
        error = BOX_NOISE * (high - low) * _normal((2, *ops.shape(low)), seed)
        error = ops.clip(error, -BOX_NOISE_LIMIT, BOX_NOISE_LIMIT)
        noisy = ops.clip(ops.stack([low, high]) + error, 0.0, length - 1.0)
        edges.append(ops.sort(noisy, axis=0))
    (left, right), (top, bottom) = ((pair[0], pair[1]) for pair in edges)
    return ops.stack([left, top, right, bottom], axis=-1)


def first_prompts(
    truth: Any, known: Any, input_size: tuple[int, int], seed: Any = None
) -> tuple[Any, Any, Any]:
    """A click in each object or a noisy box around it, as likely one as the other.

    Args:
        truth: (N, P, h, w) boolean.
        known: (N, P, h, w) boolean.
        input_size: (H, W) of the model input.
        seed: As for `correction_points`.

    Returns:
        Points (N, P, 1, 2), labels (N, P, 1) and boxes (N, P, 1, 4), in pixels of the model input;
        what a prompt set does not have is padding.
    """
    points, labels = correction_points(ops.zeros_like(truth), truth, known, seed)
    points = _in_input(points, truth.shape[2:], input_size)
    boxes = noisy_boxes(truth, input_size, seed)
    has_box = _uniform(ops.shape(labels), seed) < 0.5
    points = ops.where(has_box[..., None], float(PADDING), points)
    labels = ops.where(has_box, PADDING, labels)
    boxes = ops.where(has_box[..., None], boxes, float(PADDING))
    return points[:, :, None], labels[:, :, None], boxes[:, :, None]


def interactive_loss(
    decode: Callable[..., tuple[Any, Any]],
    labels: Any,
    input_size: tuple[int, int],
    mask_threshold: float = 0.0,
    clicks: int = 8,
    seed: Any = None,
) -> Any:
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
        seed: As for `correction_points`. With an integer all rounds draw the same numbers.
    """
    truth, known = read_labels(labels, labels.shape[1])
    points, point_labels, boxes = first_prompts(truth > 0.5, known, input_size, seed)
    logits, scores = decode(points, point_labels, boxes, None, slice(None))
    loss = loss_of_all_masks(logits, scores, labels, mask_threshold)
    if clicks == 0:
        return loss
    target, is_known = (array[:, :, 0] for array in resize_labels(labels, logits))
    labels = ops.where(is_known, target, -1.0)
    last = clicks + 2
    pause = 1.0 + ops.floor(_uniform((), seed) * (clicks + 1))
    for number in range(1, last + 1):
        best = ops.argmax(scores, axis=2)[:, :, None, None, None]
        masks = ops.take_along_axis(ops.stop_gradient(logits), best, axis=2)  # (N, P, 1, H', W')
        predicted = masks[:, :, 0] > mask_threshold
        click, label = correction_points(predicted, target > 0.5, is_known, seed)
        is_click = ops.logical_and(pause != number, number != last)
        click = _in_input(click, labels.shape[2:], input_size)
        click = ops.where(is_click, click, float(PADDING))
        label = ops.where(is_click, label, PADDING)
        points = ops.concatenate([points, click[:, :, None]], axis=2)
        point_labels = ops.concatenate([point_labels, label[:, :, None]], axis=2)
        logits, scores = decode(points, point_labels, boxes, masks, slice(0, 1))
        loss = loss + segmentation_loss(logits, scores, labels, mask_threshold)
    return loss / (last + 1)


def _in_input(points: Any, size_hw: Sequence[int], input_size: tuple[int, int]) -> Any:
    """Pixels of a mask as points of the model input: centres stay centres."""
    scale = [length / pixels for length, pixels in zip(input_size, size_hw, strict=True)]
    return (points + 0.5) * ops.convert_to_tensor(scale[::-1], "float32") - 0.5


def _uniform(shape: tuple[Any, ...], seed: Any) -> Any:
    return keras.random.uniform(shape, seed=seed)


def _normal(shape: tuple[Any, ...], seed: Any) -> Any:
    return keras.random.normal(shape, seed=seed)
