"""Masks as COCO annotations, for CVAT, Label Studio, pycocotools, FiftyOne, detectron2 and others.

Polygons have no holes in COCO: a hole is cut open, by a line without width that runs from it to
the outline. pycocotools fills that exactly. Parts of an object are a polygon each. Run lengths are
exact in any case. `annotations_coco` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..model.mask_ops import rle_area, rle_to_coco
from .polygons import TOLERANCE, mask_polygons, without_holes
from .records import SCORES, Categories, Record, cropped, label_of, run_lengths


def coco_annotation(
    record: Record,
    size_hw: tuple[int, int],
    numbers: tuple[int, int, int],
    exact: bool = False,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """One record as a COCO annotation.

    "bbox" is left, top, width and height in pixels, which count columns and rows. "score" is the
    predicted IoU, where there is one.

    Args:
        record: See `records`.
        size_hw: Height and width of the image.
        numbers: The annotation's, the image's and the category's.
        exact: Whether its segmentation is compressed run lengths rather than polygons.
        tolerance: See `mask_polygons`.

    Raises:
        ValueError: The mask has not the image's size, or is none.
    """
    runs = run_lengths(record, size_hw)
    part = cropped(runs)
    number, image_id, category_id = numbers
    segmentation: Any = rle_to_coco(runs)
    if not exact:
        polygons = mask_polygons(part.mask, tolerance)
        segmentation = [_flat(without_holes(polygon) + part.origin) for polygon in polygons]
    scores = {name: float(record[name]) for name in SCORES if name in record}
    if "predicted_iou" in scores:
        scores = {"score": scores.pop("predicted_iou"), **scores}
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "area": rle_area(runs),
        "bbox": part.box_xywh,
        "iscrowd": 0,
        **scores,
    }


def _flat(ring: np.ndarray) -> list[float]:
    """x1, y1, x2, y2, ...; whole numbers without a fraction, which makes files a third shorter."""
    numbers = ring.round(2).ravel().tolist()
    return [int(number) if number.is_integer() else number for number in numbers]


def coco_image(image_id: int, name: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """An image's entry."""
    return {"id": image_id, "file_name": name, "width": size_hw[1], "height": size_hw[0]}


def coco_categories(categories: Mapping[str, int]) -> list[dict[str, Any]]:
    """The categories' entries, by their numbers."""
    named = sorted(categories.items(), key=lambda item: item[1])
    return [{"id": number, "name": label, "supercategory": ""} for label, number in named]


def coco_content(
    images: Iterable[tuple[str, tuple[int, int], Sequence[Record]]],
    categories: Categories | None = None,
    exact: bool = False,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """COCO annotations of some images, as the JSON file holds them; see `writers` for many.

    Args:
        images: Name, height and width, and records, each.
        categories: Numbers of labels; by default from 1 as they come.
        exact: Run lengths rather than polygons.
        tolerance: See `mask_polygons`.

    Raises:
        ValueError: As `coco_annotation`.
    """
    categories = Categories(first=1) if categories is None else categories
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (name, size_hw, records) in enumerate(images, start=1):
        entries.append(coco_image(image_id, name, size_hw))
        for record in records:
            numbers = len(annotations) + 1, image_id, categories[label_of(record)]
            annotations.append(coco_annotation(record, size_hw, numbers, exact, tolerance))
    return {
        "images": entries,
        "annotations": annotations,
        "categories": coco_categories(categories),
    }
