"""Images with their true masks, from COCO annotations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..model.mask_ops import rle_to_mask
from .files import read_pixels
from .samples import Samples


def coco_samples(
    annotations: str | Path, images: str | Path | None = None, content: Any = None
) -> Samples:
    """Samples of COCO annotations: polygons and run lengths, compressed or not.

    Where an annotation is a crowd, the truth of single objects is not known.

    Args:
        annotations: The JSON file.
        images: Folder of the images, by default that of the JSON file.
        content: What is in the file, where it has been read already.

    Raises:
        ValueError: It is no such file, or lists no images.
    """
    path = Path(annotations)
    folder = path.parent if images is None else Path(images)
    content = _checked(path, read_json(path) if content is None else content)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        by_image.setdefault(annotation.get("image_id"), []).append(annotation)
    entries = content["images"]

    def read(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        entry = entries[index]
        image = read_pixels(folder / entry["file_name"])
        listed = by_image.get(entry["id"], [])
        if not listed:
            raise ValueError("it has no annotation")
        size_hw = (entry.get("height", image.shape[0]), entry.get("width", image.shape[1]))
        if size_hw != image.shape[:2]:
            raise ValueError(
                f"the annotations are for {size_hw[1]} x {size_hw[0]} pixels, the image has "
                f"{image.shape[1]} x {image.shape[0]}"
            )
        masks = [_mask(entry, size_hw) for entry in listed if not entry.get("iscrowd")]
        crowds = [_mask(entry, size_hw) for entry in listed if entry.get("iscrowd")]
        ignored = np.logical_or.reduce(crowds) if crowds else None
        if ignored is not None:  # what is annotated on its own is known
            ignored &= ~np.logical_or.reduce(masks or [np.zeros(size_hw, bool)])
        return image, np.array(masks, bool), ignored

    return Samples([str(entry["file_name"]) for entry in entries], read)


def read_json(path: Path) -> Any:
    """What is in a JSON file.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file.") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}.") from error


def _checked(path: Path, content: Any) -> dict[str, Any]:
    """The content, if it is COCO annotations."""
    is_coco = isinstance(content, dict) and all(
        isinstance(content.get(name), list) for name in ("images", "annotations")
    )
    if not is_coco:
        raise ValueError(f'{path} must be COCO annotations, with "images" and "annotations".')
    if not content["images"]:
        raise ValueError(f"{path} lists no images.")
    for entry in content["images"]:
        if not {"id", "file_name"} <= entry.keys():
            raise ValueError(f'{path}: an image must have "id" and "file_name", got {entry}.')
    return content


def _mask(annotation: dict[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) of one annotation."""
    where = f"annotation {annotation.get('id', '?')}"
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict) and {"size", "counts"} <= segmentation.keys():
        mask = rle_to_mask(segmentation)
    elif isinstance(segmentation, list) and segmentation:
        mask = _filled_polygons(segmentation, size_hw)
    else:
        raise ValueError(f"{where} has no segmentation")
    if mask.shape != size_hw:
        raise ValueError(
            f"{where} has {mask.shape[1]} x {mask.shape[0]} pixels, the image "
            f"{size_hw[1]} x {size_hw[0]}"
        )
    if not mask.any():
        raise ValueError(f"the mask of {where} is empty")
    return mask


def _filled_polygons(polygons: Sequence[Sequence[float]], size_hw: tuple[int, int]) -> np.ndarray:
    """The union of polygons x1, y1, x2, y2, ... as COCO's own code fills them."""
    try:
        from pycocotools import mask as coco_mask
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "COCO's polygons need pycocotools: "
            "`pip install 'segment-anything-transformers[finetune]'`.",
            name="pycocotools",
        ) from error
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon must have x and y of at least three corners")
    runs = coco_mask.frPyObjects([list(polygon) for polygon in polygons], *size_hw)
    return rle_to_mask(coco_mask.merge(runs))
