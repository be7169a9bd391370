"""Prompts in nested lists, arrays or tensors, read into prompt sets and batched with padding.

A prompt set is what describes one object: its points, boxes or masks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .configuration_segment_anything import PADDING
from .image_arrays import to_numpy
from .prompt_rules import check_boxes, check_points

PromptSets = list[list[np.ndarray]]
"""Prompts of one kind: for each image its prompt sets, for each of them an array of items."""


class PromptKind(NamedTuple):
    """One kind of prompt, and the ways in which it may be nested."""

    name: str
    item_shape: tuple[int | str, ...]
    """Shape of one point, label, box or mask; letters stand for any length."""
    item_is_set: bool
    """Whether a list of items is a list of prompt sets with one item each."""

    @property
    def set_depth(self) -> int:
        """Levels of nesting in one prompt set, a list of items."""
        return len(self.item_shape) + 1


POINTS = PromptKind("input_points", (2,), item_is_set=False)
LABELS = PromptKind("input_labels", (), item_is_set=False)
BOXES = PromptKind("input_boxes", (4,), item_is_set=True)
MASKS = PromptKind("input_masks", ("H", "W"), item_is_set=True)


def read_prompt_sets(prompts: Any, kind: PromptKind, n_images: int) -> PromptSets:
    """The prompts of each image by prompt set, as float64; none at all as empty lists.

    Args:
        prompts: Nested lists, arrays or tensors, or None. The full nesting is [image][prompt set]
            [item]. The prompt set may be left out: a list of points is one set, each of several
            boxes or masks a set of its own. With one image its level may be left out too.
        kind: What the prompts are.
        n_images: Number of images.

    Raises:
        TypeError: There is something else than numbers.
        ValueError: The number of images, the nesting or a shape does not fit, or a number is not
            finite.
    """
    prompts = _plain(prompts)
    if _is_empty(prompts):
        return [[] for _ in range(n_images)]
    # With the level of the image, boxes are at least [image][set][4], points [image][set][point][2]
    depth_without_image = kind.set_depth if kind.item_is_set else kind.set_depth + 1
    if n_images == 1 and _depth(prompts) <= depth_without_image:
        prompts = [prompts]
    if _depth(prompts) == 0 or len(prompts) != n_images:
        got = f"{len(prompts)} entries" if _depth(prompts) else f"{prompts!r}"
        raise ValueError(
            f"{kind.name}: expected {n_images} entries, one for each image, got {got}. Pass None "
            "for an image without such prompts."
        )
    return [_sets_of_image(entry, kind, index) for index, entry in enumerate(prompts)]


def batched(
    sets: PromptSets, counts: Sequence[int], fill: float, dtype: type = np.float32
) -> np.ndarray | None:
    """Prompt sets of all images in one (N, P, M, ...) array, filled up; None if there are none.

    Args:
        sets: Prompt sets of each image.
        counts: Number of prompt sets of each image; P is the largest.
        fill: Value of what is missing.
        dtype: Of the array.
    """
    items = [item_array for image_sets in sets for item_array in image_sets if len(item_array)]
    if not items:
        return None
    shape = (len(sets), max(counts), max(map(len, items)), *items[0].shape[1:])
    batch = np.full(shape, fill, dtype)
    for image_index, image_sets in enumerate(sets):
        for set_index, item_array in enumerate(image_sets):
            if len(item_array):
                batch[image_index, set_index, : len(item_array)] = item_array
    return batch


def check_counts(points: PromptSets, boxes: PromptSets, masks: PromptSets) -> list[int]:
    """The number of prompt sets of each image, in which all kinds of prompts have to agree.

    Raises:
        ValueError: They do not agree. A single mask agrees with any number.
    """
    counts = []
    for index, image_sets in enumerate(zip(points, boxes, masks, strict=True)):
        names = (POINTS.name, BOXES.name, MASKS.name)
        found = {name: len(sets) for name, sets in zip(names, image_sets, strict=True) if sets}
        if found.get(MASKS.name) == 1 and len(found) > 1:
            del found[MASKS.name]
        if len(set(found.values())) > 1:
            raise ValueError(
                f"Image {index}: expected as many prompt sets in every kind of prompt, one for "
                f"each object, got {found}. Pass an empty list where an object has no such prompt."
            )
        counts.append(max(found.values(), default=0))
    return counts


def match_labels(labels: PromptSets, points: PromptSets) -> PromptSets:
    """The labels, one for each point; foreground where an image has points and no labels.

    Raises:
        ValueError: Labels and points differ in number, or a label is unknown.
    """
    matched = []
    for index, (image_labels, image_points) in enumerate(zip(labels, points, strict=True)):
        where = f"input_labels of image {index}"
        if image_labels and not image_points:
            raise ValueError(f"{where}: expected input_points that they belong to, got none.")
        if not image_labels:
            image_labels = [np.ones(len(point_array)) for point_array in image_points]
        n_labels, n_points = list(map(len, image_labels)), list(map(len, image_points))
        if n_labels != n_points:
            raise ValueError(
                f"{where}: expected one label for each point, {n_points} in its prompt sets, "
                f"got {n_labels}."
            )
        unknown = np.setdiff1d(np.concatenate([[1], *image_labels]), (1, 0, -1, PADDING))
        if unknown.size:
            raise ValueError(
                f"{where}: expected 1 (foreground), 0 (background), -1 (not a point) or {PADDING} "
                f"(padding), got {unknown[0]:g}."
            )
        matched.append(image_labels)
    return matched


def check_coordinates(
    points: PromptSets,
    labels: PromptSets,
    boxes: PromptSets,
    sizes_hw: Sequence[tuple[int, int]],
) -> None:
    """Refuses points and boxes that cannot be meant in images of these sizes.

    The rule stands in `prompt_rules.py`. Padding that the user brought along counts as nothing.

    Raises:
        ValueError: Such a prompt, with its image.
    """
    for index, size_hw in enumerate(sizes_hw):
        of_image = f"of image {index}"
        if points[index]:
            xy, kinds = np.concatenate(points[index]), np.concatenate(labels[index])
            check_points(f"{POINTS.name} {of_image}", xy, size_hw, kinds >= 0)
        if boxes[index]:
            given = np.concatenate(boxes[index])
            is_box = (given != PADDING).any(axis=-1)
            check_boxes(f"{BOXES.name} {of_image}", given[is_box], size_hw)


def _plain(prompts: Any) -> Any:
    """Tensors at any level of nested lists as numpy arrays."""
    if isinstance(prompts, (list, tuple)):
        return [_plain(prompt) for prompt in prompts]
    return to_numpy(prompts) if hasattr(prompts, "shape") else prompts


def _is_empty(prompts: Any) -> bool:
    if isinstance(prompts, list):
        return all(map(_is_empty, prompts))
    return prompts is None or np.size(prompts) == 0


def _depth(prompts: Any) -> int:
    if isinstance(prompts, list):
        return 1 + max(map(_depth, prompts), default=0)
    return np.ndim(prompts)


def _sets_of_image(entry: Any, kind: PromptKind, image_index: int) -> list[np.ndarray]:
    if _is_empty(entry):
        return []
    levels = _depth(entry) - kind.set_depth
    if levels == 1:
        sets = list(entry)
    elif levels == 0:
        sets = [[item] for item in entry] if kind.item_is_set else [entry]
    elif levels == -1:
        sets = [[entry]]
    else:
        raise ValueError(
            f"{kind.name} of image {image_index}: expected at most {kind.set_depth + 1} levels, "
            f"[prompt set][item] and the item's own, got {_depth(entry)}."
        )
    return [
        _items(prompt_set, kind, f"{kind.name} of image {image_index}, prompt set {set_index}")
        for set_index, prompt_set in enumerate(sets)
    ]


def _items(prompt_set: Any, kind: PromptKind, where: str) -> np.ndarray:
    """The points, labels, boxes or masks of one prompt set."""
    if _is_empty(prompt_set):
        return np.zeros((0, *(length for length in kind.item_shape if isinstance(length, int))))
    try:
        items = np.asarray(prompt_set)
    except ValueError as error:
        raise ValueError(f"{where}: expected items of equal length, got {prompt_set!r}.") from error
    if items.dtype.kind not in ("iuf" if kind is MASKS else "biuf"):
        what = "logits, not booleans" if items.dtype == bool else "numbers"
        raise TypeError(f"{where}: expected {what}, got dtype {items.dtype}.")
    expected = [length for length in kind.item_shape if isinstance(length, int)]
    if items.ndim != kind.set_depth or list(items.shape[1:]) != (expected or [*items.shape[1:]]):
        shape = ", ".join(map(str, ("M", *kind.item_shape)))
        raise ValueError(f"{where}: expected the shape ({shape}), got {items.shape}.")
    if not np.isfinite(items).all():
        raise ValueError(f"{where}: expected finite numbers, got NaN or infinity.")
    return items.astype(np.float64)
