"""Masks as YOLO segments: a text file an image, a line an object, for ultralytics and CVAT.

A line is the number of the category, then x and y of corners as shares of the image's width and
height. It has one ring only: holes are cut open and the parts of an object joined, by lines without
width. Readers paint rings with their borders and cut coordinates to integers; what is written here
lies within the mask so that this gives the mask. Only the lines that join parts, which such readers
draw a pixel wide, are more than the mask.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .checks import read_text, room_for
from .outlines import paint
from .polygons import TOLERANCE, joined, mask_polygons, without_holes
from .records import Record, cropped, label_of, run_lengths

_DIGITS = 7  # a tenth of a pixel in images of a million


def yolo_lines(
    size_hw: tuple[int, int],
    records: Sequence[Record],
    categories: Mapping[str, int],
    tolerance: float = TOLERANCE,
) -> str:
    """The text of an image's label file. Empty masks are left out, for there is no line for them.

    Args:
        size_hw: Height and width of the image.
        records: See `records`.
        categories: Number of each label, from 0.
        tolerance: See `mask_polygons`.

    Raises:
        KeyError: A label has no number.
        ValueError: A mask has not the image's size, or is none.
    """
    lines = []
    for record in records:
        part = cropped(run_lengths(record, size_hw))
        polygons = mask_polygons(part.mask, tolerance, painted=True)
        if polygons:
            ring = joined([without_holes(polygon) for polygon in polygons])
            shares = (ring + part.origin) / size_hw[::-1]
            numbers = " ".join(f"{share:.{_DIGITS}g}" for share in shares.ravel().tolist())
            lines.append(f"{categories[label_of(record)]} {numbers}\n")
    return "".join(lines)


def yolo_description(categories: Mapping[str, int]) -> str:
    """The text of `data.yaml`: where images lie, and what numbers mean."""
    names = {
        number: label for label, number in sorted(categories.items(), key=lambda item: item[1])
    }
    content = {"path": ".", "train": "images", "val": "images", "names": names}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def read_yolo_names(path: Path) -> dict[str, int]:
    """Labels and their numbers in a `data.yaml`.

    Raises:
        ValueError: There are none in it.
    """
    return {label: number for number, label in _names(_description(path), path).items()}


def read_yolo_description(path: Path, split: str) -> tuple[Path, Path]:
    """The folder of the data set that a `data.yaml` describes, and that of a split's images.

    Raises:
        ValueError: It names no folder of images for the split.
    """
    content = _description(path)
    where, images = content.get("path") or ".", content.get(split)
    if not isinstance(where, str):
        raise ValueError(f'{path} must name a folder as "path", got {reprlib.repr(where)}.')
    root = Path(where)
    root = root if root.is_absolute() else path.parent / root
    if not isinstance(images, str):
        raise ValueError(
            f'{path} must name one folder of images as "{split}", got {reprlib.repr(images)}.'
        )
    return root, root / images


def _description(path: Path) -> dict[str, Any]:
    text = read_text(path, "YAML")
    try:
        content = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as YAML: it is nested too deep.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"{path} cannot be read as YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} must describe a YOLO data set, with "names".')
    return content


def _names(content: dict[str, Any], path: Path) -> dict[int, str]:
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(number, int) for number in names):
        raise ValueError(f'{path} must have "names", a list, or labels by their numbers.')
    if not all(isinstance(label, (str, int, float)) for label in names.values()):
        raise ValueError(f'{path} must have texts as "names", got {reprlib.repr(names)}.')
    return {number: str(label) for number, label in names.items()}


def read_yolo_labels(path: Path, size_hw: tuple[int, int]) -> np.ndarray:
    """The masks (P, H, W) of an image's label file, filled as ultralytics does.

    Raises:
        ValueError: A line is no segment; the message gives its number.
    """
    try:
        lines = read_text(path, "text").decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"its labels {path.name} cannot be read ({error})") from error
    rings = [
        _ring(line.split(), f"{path.name}, line {at}")
        for at, line in enumerate(lines, 1)
        if line.strip()
    ]
    masks = room_for(len(rings), size_hw)
    for mask, ring in zip(masks, rings, strict=True):
        mask[:] = paint([ring * size_hw[::-1]], size_hw)
    return masks


def _ring(words: Sequence[str], where: str) -> np.ndarray:
    try:
        numbers = np.array(words[1:], np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: expected numbers, got {' '.join(words)[:40]!r}") from error
    if len(numbers) == 4:
        raise ValueError(f"{where} is a box; expected a segment, x and y of at least three corners")
    if len(numbers) < 6 or len(numbers) % 2 or not ((numbers >= -0.01) & (numbers <= 1.01)).all():
        raise ValueError(
            f"{where}: expected a category, then x and y of at least three corners from 0 to 1"
        )
    return numbers.reshape(-1, 2)
