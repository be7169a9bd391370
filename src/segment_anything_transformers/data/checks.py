"""What others wrote into files of annotations, looked at before anything is made of it.

Whatever such a file holds, a fault of it is a ValueError that says where it is, and what is in it
takes no more memory than it is given.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..model.pictures import check_is_file

MAX_MASK_BYTES = 4 * 2**30
"""The most that the masks of one image may take, a byte a pixel of each."""

_REACH = 1
"""How far beyond the image, in sides of it, a corner may lie."""


def read_text(path: Path, kind: str) -> bytes:
    """The content of a file that is to be read as text of some kind, such as "JSON".

    Raises:
        ValueError: It cannot be read, or is no file: a pipe would be waited for.
    """
    try:
        check_is_file(path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file.") from error
    except OSError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path} cannot be read as {kind}: {reason}.") from error


def read_json(path: Path) -> Any:
    """What is in a JSON file.

    Raises:
        ValueError: It cannot be read.
    """
    text = read_text(path, "JSON")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} cannot be read as JSON: it is nested too deep.") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from error


def objects_in(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects that stands under a name.

    Raises:
        ValueError: It is no list, or something else is in it.
    """
    entries = content[name]
    if not isinstance(entries, list):
        raise ValueError(f'expected a list as "{name}", got {reprlib.repr(entries)}')
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f'expected objects {{...}} in "{name}", got {reprlib.repr(entry)}')
    return entries


def whole_number(entry: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number of an entry, also one in quotes.

    Raises:
        ValueError: It is none.
    """
    value = entry.get(name, default)
    try:
        if float(value) == int(float(value)):
            return int(float(value))
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f'"{name}" must be a whole number, got {reprlib.repr(value)}')


def check_near(corners: np.ndarray, where: str, size_hw: tuple[int, int]) -> None:
    """Refuses corners that cannot be meant, for which all memory would be asked.

    Args:
        corners: (n, 2), x and y.
        where: What they belong to.
        size_hw: Height and width of the image.

    Raises:
        ValueError: A corner is NaN, or lies more than a side of the image beyond it.
    """
    size_xy = np.array(size_hw[::-1])
    is_near = (corners >= -_REACH * size_xy) & (corners <= (1 + _REACH) * size_xy)  # not for NaN
    if not is_near.all():
        x, y = corners[~is_near.all(axis=1)][0]
        raise ValueError(
            f"{where}: a corner at ({x:g}, {y:g}) is far outside the image of {size_hw[1]} x "
            f"{size_hw[0]}"
        )


def check_room(n_masks: int, size_hw: tuple[int, ...]) -> None:
    """Refuses masks that would not fit into memory, before they are made.

    Raises:
        ValueError: They take more than `MAX_MASK_BYTES`.
    """
    if n_masks * size_hw[0] * size_hw[1] > MAX_MASK_BYTES:
        raise ValueError(
            f"{n_masks} objects in {size_hw[1]} x {size_hw[0]} pixels need "
            f"{n_masks * size_hw[0] * size_hw[1] / 2**30:.1f} GiB, at most "
            f"{MAX_MASK_BYTES / 2**30:g} are taken; cut the image into tiles, or, if the numbers "
            "are no instance ids, save a mask of 0 and 255"
        )


def room_for(n_masks: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Empty masks (P, H, W) to be filled, where there is memory for them.

    Raises:
        ValueError: See `check_room`.
    """
    check_room(n_masks, size_hw)
    return np.zeros((n_masks, *size_hw), bool)
