"""Images with their true masks, from a folder, COCO annotations or a data set of `datasets`.

Needs numpy and PIL only. Whatever the source, a sample has boolean masks, one an object, and a
fault of the data is an `AnnotationError` that names the sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..model.pictures import UNREADABLE
from .annotations_files import annotated_samples
from .checks import check_room
from .files import (
    IMAGE_ENDINGS,
    MASK_ENDINGS,
    numbers_of_picture,
    pixels_of_picture,
    read_numbers,
    read_pixels,
)
from .samples import Samples

_SHADES = 8  # so many numbers without a connected pixel are no objects
# ------------------------------------------------------------------------------ pictures of masks


def masks_of_map(
    values: np.ndarray, ignore_value: int | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """One boolean mask an object, and where the truth is not known.

    Booleans, 0 and 1, or 0 and 255 are one object. Other whole numbers are instance ids, 0 being
    no object. A mask with soft edges, whose numbers are shades, is refused.

    Args:
        values: (H, W).
        ignore_value: The value of pixels whose truth is not known.

    Returns:
        Masks (P, H, W), by rising id; and (H, W) bool, or None without an ignore value.

    Raises:
        ValueError: The values are neither, or there are more masks than memory is given to.
    """
    values = np.asarray(values)
    if values.ndim != 2:
        raise ValueError(f"expected a mask of shape (H, W), got {values.shape}")
    if values.dtype.kind not in "bui":
        raise ValueError(
            f"expected a mask of booleans, 0 and 1, 0 and 255, or instance ids, got {values.dtype}"
        )
    ignored = None if ignore_value is None else values == ignore_value
    found, counts = np.unique(values, return_counts=True)
    ids = found[(found != 0) & (found != (0 if ignore_value is None else ignore_value))]
    if len(ids) and ids[0] < 0:
        raise ValueError(
            f"expected instance ids from 0, got {ids[0]}; name the value of unknown pixels "
            "as ignore_value"
        )
    if len(ids) >= _SHADES:
        _check_shades(values, found[counts > 1])
    check_room(len(ids), values.shape)
    return values == ids[:, None, None], ignored


def _check_shades(values: np.ndarray, found: np.ndarray) -> None:
    """Refuses shades of a soft edge: numbers whose pixels are strewn, as those of objects are not.

    Args:
        values: (H, W).
        found: The numbers that more than one pixel has, rising.
    """
    has_equal = np.zeros(values.shape, bool)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):  # each pair of neighbours once
        height, width = values.shape
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width + min(0, right)))
        equal = values[here] == values[there]
        has_equal[here] |= equal
        has_equal[there] |= equal
    if not len(found):
        return
    at = np.minimum(np.searchsorted(found, values), len(found) - 1)
    is_found = found[at] == values
    pixels = np.bincount(at[is_found], minlength=len(found))
    together = np.bincount(at[is_found & has_equal], minlength=len(found))
    strewn = np.count_nonzero(2 * together < pixels)
    if strewn >= _SHADES and 2 * strewn >= len(found):
        raise ValueError(
            f"the mask has {len(found)} numbers whose pixels are strewn, as in soft edges or "
            "noise; expected 0 and 255, or a number for each object: save it without smoothing and "
            "without loss, or threshold it at 128"
        )


# ---------------------------------------------------------------------------------------- sources


def folder_samples(
    folder: str | Path,
    ignore_value: int | None = None,
    images: str | Path | None = None,
    bands: Sequence[int] | None = None,
) -> Samples:
    """Samples of a folder with `images/` and `masks/`, paired by their names without endings.

    The masks of `images/a.jpg` are `masks/a.png`, whose numbers `masks_of_map` explains, or the
    files in the folder `masks/a/`, an object (or several) each.

    Args:
        folder: The folder.
        ignore_value: The value of pixels whose truth is not known.
        images: The folder of the images, if they do not lie in `images/`.
        bands: Bands of the images to be read, counted from 1, see `read_pixels`.

    Raises:
        ValueError: One of the folders is missing, there are no images, or two have one name.
    """
    folder = Path(folder)
    place = folder / "images" if images is None else Path(images)
    for part in (place, folder / "masks"):
        if not part.is_dir():
            raise ValueError(
                f"{folder} must have the folders images and masks, {part.name} is missing."
            )
    files = sorted(p for p in place.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
    if not files:
        raise ValueError(f"{place} has no images ({', '.join(IMAGE_ENDINGS)}).")
    stems = [path.stem for path in files]
    double = next((stem for stem in stems if stems.count(stem) > 1), None)
    if double is not None:
        raise ValueError(f"{place} has two images {double}, with different endings.")

    def read(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        image = read_pixels(files[index], bands)
        maps = [read_numbers(path) for path in _mask_files(folder / "masks", stems[index])]
        return image, *_masks_of_maps(maps, ignore_value)

    return Samples([path.name for path in files], read)


def _mask_files(folder: Path, stem: str) -> list[Path]:
    if (folder / stem).is_dir():
        files = sorted((folder / stem).iterdir())
        files = [path for path in files if path.suffix.lower() in MASK_ENDINGS]
    else:
        paths = [folder / f"{stem}{ending}" for ending in MASK_ENDINGS]
        files = [path for path in paths if path.is_file()][:1]
    if not files:
        raise ValueError(
            f"it has no mask; expected {folder.name}/{stem}.png, or files in {folder.name}/{stem}/"
        )
    return files


def _masks_of_maps(
    maps: Sequence[np.ndarray], ignore_value: int | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The masks of several pictures of one image; a pixel unknown in one is unknown."""
    sizes = {values.shape for values in maps}
    if len(sizes) > 1:
        raise ValueError(f"its masks differ in size: {sorted(sizes)}")
    parts = [masks_of_map(values, ignore_value) for values in maps]
    empty = [index for index, (masks, _) in enumerate(parts) if len(masks) == 0]
    if empty and len(parts) > 1:
        raise ValueError(f"mask {empty[0]} is empty (counted from 0)")
    unknown = [ignored for _, ignored in parts if ignored is not None]
    check_room(sum(len(masks) for masks, _ in parts), maps[0].shape)
    return (
        parts[0][0] if len(parts) == 1 else np.concatenate([masks for masks, _ in parts]),
        np.logical_or.reduce(unknown) if unknown else None,
    )


def dataset_samples(
    dataset: Any, image: str = "image", masks: str = "mask", ignore_value: int | None = None
) -> Samples:
    """Samples of a data set of the library `datasets`, or of any sequence of dictionaries.

    Args:
        dataset: Rows with an image and a mask or a list of masks, pictures of PIL or arrays.
        image: Column of the image.
        masks: Column of the mask or masks.
        ignore_value: The value of pixels whose truth is not known.

    Raises:
        ValueError: A column is missing.
    """
    # A data set knows its columns; its first row may be faulty.
    columns = getattr(dataset, "column_names", None) or list(dataset[0] if len(dataset) else [])
    for name in (image, masks):
        if name not in columns:
            raise ValueError(f"The data set has no column {name!r}; its columns are {columns}.")

    def read(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        try:
            row = dataset[index]
        except UNREADABLE as error:
            raise ValueError(f"its image or mask cannot be read ({error})") from error
        if row[image] is None:
            raise ValueError("the image is missing")
        given = row[masks] if isinstance(row[masks], (list, tuple)) else [row[masks]]
        maps = [_map_of(entry) for entry in given if entry is not None]
        if not maps:
            raise ValueError("it has no mask")
        picture = row[image]
        is_picture = isinstance(picture, Image.Image)
        pixels = pixels_of_picture(picture) if is_picture else np.asarray(picture)
        return pixels, *_masks_of_maps(maps, ignore_value)

    return Samples([f"row {index}" for index in range(len(dataset))], read)


def _map_of(entry: Any) -> np.ndarray:
    return numbers_of_picture(entry) if isinstance(entry, Image.Image) else np.asarray(entry)


_DATASET_ENDINGS = (".parquet", ".arrow", ".csv", ".jsonl", ".py", ".tar", ".zip", ".yaml")


def _may_be_dataset(folder: Path) -> bool:
    """Whether the library `datasets` might find more than pictures in a folder."""
    return any(path.suffix.lower() in _DATASET_ENDINGS for path in folder.rglob("*"))


def load_samples(
    source: str | Path,
    images: str | Path | None = None,
    ignore_value: int | None = None,
    split: str = "train",
    bands: Sequence[int] | None = None,
) -> Samples:
    """Samples of whatever a path or name means.

    Args:
        source: A folder with `images/` and `masks/`, or with `images/` and YOLO's `labels/`; a
            JSON file of COCO annotations; a folder of labelme's files, of GeoJSON, or of JSON
            files of the command, or one such file; YOLO's `data.yaml`; or the name of a data set
            on the Hub, or a folder of one, which needs the library `datasets`.
        images: The folder of the images that annotations belong to; by default where they say,
            for COCO the JSON file's folder.
        ignore_value: The value of pixels whose truth is not known; of images of masks alone.
        split: Of a data set of `datasets`.
        bands: Bands of the images to be read, counted from 1, see `read_pixels`; of images in
            files alone.

    Raises:
        ModuleNotFoundError: A library is missing; the message says how to install it.
        ValueError: There is nothing there, or it has another form.
    """
    path = Path(source)
    no_pixels = f"{source}: annotations have no pixels of an ignore_value; leave it out."
    if ignore_value is not None and path.suffix == ".json":
        raise ValueError(no_pixels)
    annotated = annotated_samples(path, images, split, bands)
    if annotated is not None:
        if ignore_value is not None:
            raise ValueError(no_pixels)
        return annotated
    if any((path / part).is_dir() for part in ("images", "masks")):
        return folder_samples(path, ignore_value, images, bands)
    if path.is_file():
        raise ValueError(
            f"{source} must be a folder, a JSON file of COCO annotations, labelme or the command, "
            "a .geojson file, or YOLO's data.yaml."
        )
    if path.is_dir() and not _may_be_dataset(path):
        raise ValueError(
            f"{source} is no data set: expected the folders images and masks, or images and "
            "labels (YOLO), or files of labelme, GeoJSON or the command, or the files of a data "
            "set of `datasets`."
        )
    if bands is not None:
        raise ValueError(f"{source}: bands are chosen in files of images, not in data sets.")
    return dataset_samples(_hub_dataset(str(source), split), ignore_value=ignore_value)


def _hub_dataset(name: str, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{name} has no folders images and masks; as the name of a data set it needs "
            "`pip install 'segment-anything-transformers[finetune]'`.",
            name="datasets",
        ) from error
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"{name}: expected a folder with images and masks, or a data set that "
            f"can be loaded: {error}"
        ) from error
