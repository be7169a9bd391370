"""Images with their true masks, from COCO annotations."""

import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..model.mask_ops import rle_to_mask
from .checks import check_near, objects_in, read_json, room_for, whole_number
from .files import read_pixels
from .samples import Samples


def coco_samples(
    annotations: str | Path,
    images: str | Path | None = None,
    content: Any = None,
    bands: Sequence[int] | None = None,
) -> Samples:
    """Samples of COCO annotations: polygons and run lengths, compressed or not.

    Where an annotation is a crowd, the truth of single objects is not known. Ids and sizes may be
    numbers in quotes, and a polygon need not stand in a list of its own.

    Args:
        annotations: The JSON file.
        images: Folder of the images, by default that of the JSON file.
        content: What is in the file, where it has been read already.
        bands: Bands of the images to be read, counted from 1, see `read_pixels`.

    Raises:
        ValueError: It is no such file, or lists no images.
    """
    path = Path(annotations)
    folder = path.parent if images is None else Path(images)
    content = _checked(path, read_json(path) if content is None else content)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(_key(annotation.get("image_id")), []).append(annotation)
    entries = content["images"]

    def read(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        entry = entries[index]
        image = read_pixels(folder / entry["file_name"], bands)
        listed = by_image.get(_key(entry["id"]), [])
        if not listed:
            raise ValueError("it has no annotation")
        height, width = image.shape[:2]
        size_hw = (whole_number(entry, "height", height), whole_number(entry, "width", width))
        if size_hw != (height, width):
            raise ValueError(
                f"the annotations are for {size_hw[1]} x {size_hw[0]} pixels, the image has "
                f"{width} x {height}"
            )
        return image, *_masks(listed, size_hw)

    return Samples([entry["file_name"] for entry in entries], read)


def _masks(
    listed: Sequence[dict[str, Any]], size_hw: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The masks of the single objects (P, H, W), and where crowds hide what is not known."""
    is_crowd = [bool(whole_number(annotation, "iscrowd", 0)) for annotation in listed]
    singles = [one for one, crowd in zip(listed, is_crowd, strict=True) if not crowd]
    masks = room_for(len(singles), size_hw)
    for mask, annotation in zip(masks, singles, strict=True):
        mask[:] = _mask(annotation, size_hw)
    if not any(is_crowd):
        return masks, None
    ignored = np.zeros(size_hw, bool)
    for annotation, crowd in zip(listed, is_crowd, strict=True):
        if crowd:
            ignored |= _mask(annotation, size_hw)
    return masks, ignored & ~masks.any(axis=0)  # what is annotated on its own is known


def _checked(path: Path, content: Any) -> dict[str, Any]:
    """The content, if it is COCO annotations."""
    is_coco = isinstance(content, dict) and all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    )
    if not is_coco:
        raise ValueError(f'{path} must be COCO annotations, with "images" and "annotations".')
    if not content["images"]:
        raise ValueError(f"{path} lists no images.")
    for name in ("images", "annotations"):
        try:
            objects_in(content, name)
        except ValueError as error:
            raise ValueError(f"{path}: {error}.") from error
    for entry in content["images"]:
        if not {"id", "file_name"} <= entry.keys():
            raise ValueError(
                f'{path}: an image must have "id" and "file_name", got {reprlib.repr(entry)}.'
            )
        if not isinstance(entry["file_name"], str) or not isinstance(entry["id"], (int, str)):
            raise ValueError(
                f'{path}: an image must have a number as "id" and a text as "file_name", got '
                f"{reprlib.repr(entry)}."
            )
    return content


def _key(identifier: Any) -> Any:
    """An id by which images are found: a number in quotes is that number."""
    if isinstance(identifier, str):
        return int(identifier) if identifier.isascii() and identifier.isdigit() else identifier
    return identifier if isinstance(identifier, (int, float)) else None


def _mask(annotation: dict[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of one annotation."""
    where = f"annotation {annotation.get('id', '?')}"
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        mask = _from_runs(segmentation, where, size_hw)
    elif isinstance(segmentation, list) and segmentation:
        mask = _filled_polygons(_polygons(segmentation, where, size_hw), size_hw)
    else:
        raise ValueError(f"{where} has no segmentation")
    if not mask.any():
        raise ValueError(f"the mask of {where} is empty")
    return mask


def _from_runs(rle: dict[str, Any], where: str, size_hw: tuple[int, int]) -> np.ndarray:
    """The mask of run lengths, whose size is known to be the image's before they are decoded."""
    size = rle["size"]
    if not isinstance(size, (list, tuple)) or len(size) != 2:
        raise ValueError(f"{where}: size must be [height, width], got {reprlib.repr(size)}")
    height, width = (whole_number({"size": value}, "size", 0) for value in size)
    if (height, width) != size_hw:
        raise ValueError(
            f"{where} has {width} x {height} pixels, the image {size_hw[1]} x {size_hw[0]}"
        )
    counts = rle["counts"]
    try:
        if isinstance(counts, list):
            counts = np.array(counts, np.int64)
        elif not isinstance(counts, (str, bytes)):
            raise TypeError(f"got {type(counts).__name__}")
        return rle_to_mask({"size": [height, width], "counts": counts})
    except (TypeError, OverflowError, IndexError) as error:
        raise ValueError(f"{where}: counts must be run lengths ({error})") from error


def _polygons(segmentation: list[Any], where: str, size_hw: tuple[int, int]) -> list[np.ndarray]:
    """Polygons (2 n,) of x and y that lie within or near the image."""
    if not any(isinstance(part, (list, tuple)) for part in segmentation):
        segmentation = [segmentation]  # one polygon without its list
    polygons = []
    for polygon in segmentation:
        try:
            corners = np.array(polygon, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"{where}: a polygon must be numbers x1, y1, x2, y2, ..., got "
                f"{reprlib.repr(polygon)}"
            ) from error
        if corners.ndim == 2 and corners.shape[1] == 2:
            corners = corners.reshape(-1)  # pairs of x and y
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
            raise ValueError(f"{where}: a polygon must have x and y of at least three corners")
        check_near(corners.reshape(-1, 2), where, size_hw)
        polygons.append(corners)
    return polygons


def _filled_polygons(polygons: Sequence[np.ndarray], size_hw: tuple[int, int]) -> np.ndarray:
    """The union of polygons x1, y1, x2, y2, ... as COCO's own code fills them."""
    try:
        from pycocotools import mask as coco_mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "COCO's polygons need pycocotools: "
            "`pip install 'segment-anything-transformers[finetune]'`.",
            name="pycocotools",
        ) from error
    runs = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], *size_hw)
    return rle_to_mask(coco_mask.merge(runs))
