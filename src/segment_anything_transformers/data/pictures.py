"""Masks as pictures: one map of an image's instances with 16 bits, or a picture a mask."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image

from ..model.mask_ops import rle_area, rle_to_mask
from .records import Record, run_lengths

MOST_INSTANCES = 2**16 - 1


def instance_map(size_hw: tuple[int, int], records: Sequence[Record]) -> np.ndarray:
    """(H, W) uint16: the number of a record, from 1, where its mask is, and 0 where none is.

    A pixel has room for one number: where masks overlap, the smaller one shows, of equally large
    ones the earlier. A mask that is covered wholly is not in the map.

    Raises:
        ValueError: There are more than 65,535 records, or a mask has not the image's size.
    """
    if len(records) > MOST_INSTANCES:
        raise ValueError(
            f"An instance map of 16 bits has room for {MOST_INSTANCES} masks, got {len(records)}."
        )
    runs = [run_lengths(record, size_hw) for record in records]
    numbers = np.zeros(size_hw, np.uint16)
    for index in sorted(range(len(runs)), key=lambda index: (-rle_area(runs[index]), -index)):
        numbers[rle_to_mask(runs[index])] = index + 1
    return numbers


def png(picture: Image.Image | np.ndarray, one_bit: bool = False) -> bytes:
    """The content of a PNG file: a boolean mask as 0 and 255, uint16 with 16 bits.

    Args:
        picture: A PIL image, or an array of booleans, uint8 or uint16.
        one_bit: Whether a boolean mask takes one bit a pixel: smaller, and not for all programs.
    """
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = BytesIO()
    (image.convert("L") if image.mode == "1" and not one_bit else image).save(buffer, "PNG")
    return buffer.getvalue()
