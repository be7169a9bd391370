"""The prompts that a predictor is given: checked, and brought to one form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..model.image_arrays import to_numpy
from ..model.prompt_rules import check_boxes, check_mask_logits, check_points
from .zoom import Region

FOREGROUND, BACKGROUND, NOT_A_POINT = 1, 0, -1
SURE_LOGIT = 8.0
"""Of a boolean mask that becomes a prompt: as sure as the model is of its own masks."""


@dataclass(frozen=True)
class Prompts:
    """Checked prompts, N independent ones; those that are absent are None."""

    is_batched: bool
    """Whether the user gave the leading axis."""
    count: int
    """N."""
    points: np.ndarray | None = None
    """(N, M1, 2)."""
    labels: np.ndarray | None = None
    """(N, M1) int64."""
    boxes: np.ndarray | None = None
    """(N, M2, 4)."""
    masks: np.ndarray | None = None
    """(N, M3, H', W') float32."""

    def within(self, region: Region) -> Prompts:
        """The same in pixels of a part of the image.

        Points of the background that lie beyond it are none there, and boxes end at its edge.

        Raises:
            ValueError: A point of the foreground, or all of a box, lies beyond it.
        """
        origin = np.array([region.left, region.top])
        limit = np.array(region.size[::-1])
        points, labels, boxes = self.points, self.labels, self.boxes
        if points is not None and labels is not None:
            points = points - origin
            beyond = ((points < 0) | (points > limit)).any(-1)
            _refuse("point", self.points, beyond & (labels == FOREGROUND), region)
            labels = np.where(beyond, NOT_A_POINT, labels)
        if boxes is not None:
            boxes = boxes - np.tile(origin, 2)
            beyond = (boxes[..., 2:] < 0).any(-1) | (boxes[..., :2] > limit).any(-1)
            _refuse("box", self.boxes, beyond, region)
            boxes = boxes.clip(0, np.tile(limit, 2))
        return replace(self, points=points, labels=labels, boxes=boxes)


def sure_logits(mask: np.ndarray) -> np.ndarray:
    """Logits, float32, of a boolean mask of any shape."""
    return np.where(mask, SURE_LOGIT, -SURE_LOGIT).astype(np.float32)


def _refuse(name: str, prompts: Any, is_faulty: np.ndarray, region: Region) -> None:
    """Raises ValueError if a point or box is faulty: it lies beyond the region."""
    if is_faulty.any():
        raise ValueError(
            f"The {name} {prompts[is_faulty][0].tolist()} lies beyond the part of the image that "
            f"the predictor was zoomed to, {tuple(region)}. Zoom to a box with the {name} in it, "
            "or zoom(None) to see all of the image."
        )


def checked_prompts(
    points: Any,
    labels: Any,
    boxes: Any,
    masks: Any,
    mask_hw: tuple[int, int],
    image_hw: tuple[int, int],
) -> Prompts:
    """The prompts of a call of `SAMPredictor`.

    Args:
        points: As in the call, and so the other prompts.
        labels: What the points mean.
        boxes: Left, top, right, bottom.
        masks: Logits.
        mask_hw: Size (H', W') of the masks.
        image_hw: Size (H0, W0) of the image, in whose pixels the coordinates are.

    Raises:
        TypeError: If a prompt does not consist of numbers.
        ValueError: If prompts have the wrong shape, or cannot be meant, see `prompt_rules`.
    """
    if labels is not None and points is None:
        raise ValueError("labels say what points mean, but there are no points. Pass both.")
    given: dict[str, np.ndarray] = {}
    if points is not None:
        given["points"] = _checked_numbers("points", points, "(M1, 2) or (N, M1, 2)", (2,))
        given["labels"] = _checked_labels(labels, given["points"])
        check_points("points", given["points"], image_hw, given["labels"] != NOT_A_POINT)
    if boxes is not None:
        given["boxes"] = _checked_numbers("boxes", boxes, "(M2, 4) or (N, M2, 4)", (4,))
        check_boxes("boxes", given["boxes"], image_hw)
    if masks is not None:
        given["masks"] = checked_masks("masks", masks, mask_hw, "the model's mask size")
    is_batched, count = _batch_of(given)
    batched = {name: array if is_batched else array[None] for name, array in given.items()}
    present = {name: array for name, array in batched.items() if array.shape[1] > 0}
    return Prompts(**present, is_batched=is_batched, count=count)


def _batch_of(given: dict[str, np.ndarray]) -> tuple[bool, int]:
    """Whether the prompts have a batch axis, and its length."""
    unbatched_ndim = {"points": 2, "labels": 1, "boxes": 2, "masks": 3}
    sizes = {
        name: len(array) if array.ndim > unbatched_ndim[name] else None
        for name, array in given.items()
    }
    if len(set(sizes.values())) > 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in given.items())
        raise ValueError(
            "Either no prompt has a leading batch axis, or all have one of the same length; "
            f"got {shapes}."
        )
    count = next(iter(sizes.values()), None)
    return count is not None, 1 if count is None else count


def _array(name: str, values: Any, shape: str) -> np.ndarray:
    try:
        return to_numpy(values)
    except ValueError as error:
        raise ValueError(
            f"{name} must have shape {shape}, in rows of equal length; they differ in length."
        ) from error


def _checked_numbers(name: str, values: Any, shape: str, last_axes: tuple[int, ...]) -> np.ndarray:
    """The values, if they are finite numbers of the shape that the text describes."""
    array = _array(name, values, shape)
    if array.dtype.kind not in "uif":
        raise TypeError(f"{name} must be an array of numbers, got dtype {array.dtype}.")
    n_last = len(last_axes)
    if array.ndim not in (n_last + 1, n_last + 2) or array.shape[-n_last:] != last_axes:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return array


def _checked_labels(labels: Any, points: np.ndarray) -> np.ndarray:
    if labels is None:
        return np.full(points.shape[:-1], FOREGROUND, np.int64)
    labels = _array("labels", labels, "(M1,) or (N, M1)")
    if labels.shape != points.shape[:-1]:
        raise ValueError(
            f"labels must have one entry for each point, {points.shape[:-1]}, got {labels.shape}."
        )
    if not np.isin(labels, (FOREGROUND, BACKGROUND, NOT_A_POINT)).all():
        raise ValueError(
            "labels must be 1 (foreground), 0 (background) or -1 (not a point), "
            f"got {sorted(set(labels.ravel().tolist()))}."
        )
    return labels.astype(np.int64)


def checked_masks(name: str, masks: Any, size_hw: tuple[int, int], whose: str) -> np.ndarray:
    """Mask logits (M, H, W) or (N, M, H, W) of that size as float32.

    Args:
        name: What the user calls them.
        masks: The user's array.
        size_hw: The size they must have.
        whose: What has that size.

    Raises:
        TypeError: If they are boolean, or no numbers.
        ValueError: If they have another shape, are not finite, or are no logits.
    """
    height, width = size_hw
    shape = f"(M, {height}, {width}) or (N, M, {height}, {width}), the size of {whose}"
    masks = _array(name, masks, shape)
    if masks.dtype == bool:
        raise TypeError(
            f"{name} must hold logits, got a boolean mask. "
            "np.where(mask, 10.0, -10.0) makes confident logits of it."
        )
    checked = _checked_numbers(name, masks, shape, (height, width))
    check_mask_logits(name, checked)
    return checked.astype(np.float32)
