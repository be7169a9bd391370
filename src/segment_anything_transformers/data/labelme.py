"""Masks as labelme's files: a JSON an image, shapes that can be edited.

labelme's polygons have no holes: a hole is cut open, by a line without width that runs from it to
the outline. Parts of an object are shapes of one label and `group_id`, as labelme groups them.
Polygons lie within the mask so that labelme, which paints them with their borders, makes the mask
of them. As shapes of the kind "mask" they are exact pixels.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from ..model.pictures import UNREADABLE, PictureError
from .checks import check_near, objects_in, room_for
from .outlines import paint
from .pictures import png
from .polygons import TOLERANCE, mask_polygons, without_holes
from .records import SCORES, Record, cropped, label_of, run_lengths

LABELME_VERSION = "5.5.0"
"""Of the form of the files."""


def labelme_content(
    image_path: str,
    size_hw: tuple[int, int],
    records: Sequence[Record],
    exact: bool = False,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """What labelme's JSON file of an image holds. Empty masks are left out.

    Args:
        image_path: The image's path from the folder of the JSON file.
        size_hw: Height and width of the image.
        records: See `records`.
        exact: Shapes of the kind "mask" rather than "polygon".
        tolerance: See `mask_polygons`.

    Raises:
        ValueError: A mask has not the image's size, or is none.
    """
    shapes = []
    for index, record in enumerate(records):
        part = cropped(run_lengths(record, size_hw))
        if not part.mask.size:
            continue
        scores = [f"{name} {record[name]:.4f}" for name in SCORES if name in record]
        described: dict[str, Any] = {
            "label": label_of(record),
            "group_id": None,
            "flags": {},
            "description": ", ".join(scores),
        }
        if exact:
            shapes.append({**described, **_mask_shape(part.mask, part.left, part.top)})
            continue
        polygons = mask_polygons(part.mask, tolerance, painted=True)
        described["group_id"] = index + 1 if len(polygons) > 1 else None
        for polygon in polygons:
            points = (without_holes(polygon) + part.origin).round(2).tolist()
            shapes.append({**described, "shape_type": "polygon", "points": points, "mask": None})
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size_hw[0],
        "imageWidth": size_hw[1],
    }


def _mask_shape(mask: np.ndarray, left: int, top: int) -> dict[str, Any]:
    height, width = mask.shape
    return {
        "shape_type": "mask",
        "points": [[left, top], [left + width - 1, top + height - 1]],
        "mask": b64encode(png(mask, one_bit=True)).decode(),
    }


def labelme_masks(content: Mapping[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    """The masks (P, H, W) of a labelme file, filled as labelme does.

    Shapes of one label and `group_id` are one object. Polygons, rectangles, circles and masks
    count.

    Raises:
        ValueError: A shape is of another kind, or has not the points that its kind needs.
    """
    shapes = objects_in(content, "shapes")
    numbers: dict[Any, int] = {}  # of objects
    for index, shape in enumerate(shapes):
        numbers.setdefault(_object_of(shape, index), len(numbers))
    masks = room_for(len(numbers), size_hw)
    for index, shape in enumerate(shapes):
        mask = masks[numbers[_object_of(shape, index)]]
        mask |= _mask_of_shape(shape, size_hw, f"shape {index} (counted from 0)")
    return masks


def _object_of(shape: Mapping[str, Any], index: int) -> Any:
    """What shapes of one object have in common."""
    group = shape.get("group_id")
    return index if group is None else repr((shape.get("label"), group))


def _mask_of_shape(shape: Mapping[str, Any], size_hw: tuple[int, int], where: str) -> np.ndarray:
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape.get("points", []), np.float64)
    expected = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}
    if kind not in expected:
        raise ValueError(f"{where} is a {kind}, which has no area; expected {', '.join(expected)}")
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < expected[kind]:
        raise ValueError(f"{where}, a {kind}, must have at least {expected[kind]} points [x, y]")
    check_near(points, where, size_hw)
    if kind == "rectangle":
        (left, top), (right, bottom) = points[:2]
        points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    elif kind == "circle":
        angles = np.linspace(0, 2 * np.pi, 360, endpoint=False)
        turned = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        points = points[0] + turned * np.linalg.norm(points[1] - points[0])
    elif kind == "mask":
        return _pasted(shape, points, size_hw, where)
    return paint([points], size_hw)


def _pasted(
    shape: Mapping[str, Any], points: np.ndarray, size_hw: tuple[int, int], where: str
) -> np.ndarray:
    (left, top), (right, bottom) = points.astype(int)
    mask = np.zeros(size_hw, bool)
    place = mask[top : bottom + 1, left : right + 1]
    try:
        with Image.open(BytesIO(b64decode(shape["mask"]))) as picture:
            if picture.size != place.shape[::-1] or min(left, top) < 0:
                raise PictureError(f"its {picture.width} x {picture.height} pixels do not fit")
            place[:] = np.asarray(picture).astype(bool)
    except UNREADABLE as error:
        raise ValueError(f"{where} has no mask that can be read ({error})") from error
    return mask
