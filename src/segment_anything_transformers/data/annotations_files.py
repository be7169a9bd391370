"""Images with their true masks, from what the command and annotation tools write beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..model.mask_ops import rle_to_mask
from .annotations_coco import coco_samples
from .checks import objects_in, read_json, room_for
from .files import IMAGE_ENDINGS, read_pixels
from .geojson import geojson_masks
from .labelme import labelme_masks
from .records import run_lengths
from .samples import Samples
from .yolo import read_yolo_description, read_yolo_labels

_Masks = Callable[[Mapping[str, Any], tuple[int, int]], np.ndarray]


def annotated_samples(
    path: Path,
    images: str | Path | None = None,
    split: str = "train",
    bands: Sequence[int] | None = None,
) -> Samples | None:
    """Samples of annotations in any format but pictures of masks; None if there are none.

    Args:
        path: A file or a folder of files, see `annotations.load_samples`.
        images: The folder of the images.
        split: The part of a YOLO data set.
        bands: Bands of the images to be read, see `files.read_pixels`.

    Raises:
        ValueError: It is such a file, but not a sound one.
    """
    if path.suffix in (".json", ".geojson"):
        content = read_json(path)
        if _kind(content) is None:
            return coco_samples(path, images, content, bands)
        return file_samples([path], images, bands)
    if path.suffix in (".yaml", ".yml") or (path / "labels").is_dir():
        return yolo_samples(path, images, split, bands)
    if not path.is_dir() or any((path / part).is_dir() for part in ("images", "masks")):
        return None
    for place in (path / "labelme", path / "geojson", path):
        found = sorted([*place.rglob("*.json"), *place.rglob("*.geojson")])
        files = [file for file in found if _kind(_read_or_none(file))]
        if files:
            return file_samples(files, images, bands)
    return None


# ------------------------------------------------------------------------------ one file an image


def file_samples(
    files: Sequence[Path],
    images: str | Path | None = None,
    bands: Sequence[int] | None = None,
) -> Samples:
    """Samples of files of labelme, of GeoJSON, or of the command's JSON, one an image.

    Args:
        files: The files.
        images: The folder of the images, which are looked for by their names; by default they lie
            where the files say.
        bands: Bands of the images to be read, see `files.read_pixels`.
    """

    def read(index: int) -> tuple[np.ndarray, np.ndarray, None]:
        content = read_json(files[index])
        kind = _kind(content)
        if kind is None:
            raise ValueError("it is no file of labelme, GeoJSON or the command")
        named, masks = kind
        image = read_pixels(_image_path(files[index], named(content), images), bands)
        size_hw = image.shape[:2]
        return image, masks(content, size_hw), None

    return Samples([file.name for file in files], read)


def _image_path(file: Path, named: str, images: str | Path | None) -> Path:
    """Where the image is: in the folder given, or where its path leads from the file or here."""
    if images is not None:
        return Path(images) / Path(named).name
    places = [file.parent / named, Path(named), file.parent / Path(named).name]
    return next((place for place in places if place.is_file()), places[0])


def _record_masks(content: Mapping[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    records = objects_in(content, "masks")
    masks = room_for(len(records), size_hw)
    for mask, record in zip(masks, records, strict=True):
        mask[:] = rle_to_mask(run_lengths(record, size_hw))
    return masks


_KINDS: tuple[tuple[set[str], Callable[[Any], str], _Masks], ...] = (
    ({"shapes", "imagePath"}, lambda content: content["imagePath"], labelme_masks),
    ({"features", "image"}, lambda content: content["image"]["path"], geojson_masks),
    ({"masks", "image"}, lambda content: content["image"], _record_masks),
)
"""The entries that a file is known by; where its image is; and its masks."""


def _kind(content: Any) -> tuple[Callable[[Any], str], _Masks] | None:
    """What a file of this content is, if it is one of `_KINDS`."""
    if isinstance(content, dict):
        for entries, named, masks in _KINDS:
            if entries <= content.keys():
                return named, masks
    return None


def _read_or_none(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError:
        return None


# ------------------------------------------------------------------------------------------- YOLO


def yolo_samples(
    path: str | Path,
    images: str | Path | None = None,
    split: str = "train",
    bands: Sequence[int] | None = None,
) -> Samples:
    """Samples of YOLO segments: `images/a.jpg` with `labels/a.txt`, in the same folders below.

    Args:
        path: The folder, or its `data.yaml`, whose entry for the split names the images.
        images: The folder of the images instead; the labels lie in `labels/` of the data set.
        split: "train", "val" or "test", if there is a `data.yaml`.
        bands: Bands of the images to be read, see `files.read_pixels`.

    Raises:
        ValueError: There are no images or no labels.
    """
    path = Path(path)
    root, folder = path, path / "images"
    if path.is_file():
        root, folder = read_yolo_description(path, split)
    labels = root / "labels"
    if images is not None:
        folder = Path(images)
    elif "images" in folder.parts:  # ultralytics' rule: the last folder of this name
        at = len(folder.parts) - 1 - folder.parts[::-1].index("images")
        labels = Path(*folder.parts[:at], "labels", *folder.parts[at + 1 :])
    if not labels.is_dir():
        raise ValueError(f"{path}: there is no folder {labels} with YOLO's labels.")
    found = [p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS]
    if not found:
        raise ValueError(
            f"{path}: {folder} has no images; name the folder that they lie in as images."
        )
    files = sorted(found)
    names = [file.relative_to(folder) for file in files]

    def read(index: int) -> tuple[np.ndarray, np.ndarray, None]:
        image = read_pixels(files[index], bands)
        text = (labels / names[index]).with_suffix(".txt")
        if not text.is_file():
            raise ValueError(f"it has no labels; expected {text}")
        return image, read_yolo_labels(text, image.shape[:2]), None

    return Samples([name.as_posix() for name in names], read)
