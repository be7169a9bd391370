"""Results of many images as files that other tools read, image by image, in flat memory.

    with open_writer("coco", "annotated") as writer:
        for path, image in images:
            writer.add(path, (height, width), generator.generate(image))

Every file appears whole or not at all. A file of the whole run appears when the run ends.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Self

from ..model.mask_ops import rle_to_mask
from ..prediction.whole_files import whole_file
from .coco import coco_annotation, coco_categories, coco_image
from .geojson import geojson_content
from .labelme import labelme_content
from .pictures import instance_map, png
from .polygons import TOLERANCE
from .records import Categories, Record, label_of, run_lengths
from .yolo import read_yolo_names, yolo_description, yolo_lines


class Writer:
    """Writes the results of images into a folder; a context that ends the run.

    Results of an image that are there already are replaced, those of others stay. The exception is
    COCO: its file is of one run.

    Args:
        folder: Where to write; made if need be.
        categories: Labels, in the order of their numbers; others get numbers as they come.
        exact: Exact masks where the format has such: run lengths in COCO, masks in labelme; and
            in the others all corners, as with a tolerance of 0.
        tolerance: Of polygons, see `polygons.mask_polygons`.
    """

    first_category: ClassVar[int] = 0

    def __init__(
        self,
        folder: str | Path,
        categories: Sequence[str] = (),
        exact: bool = False,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Makes the folder."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.categories = Categories(categories, self.first_category)
        self.exact = exact
        self.tolerance = 0.0 if exact else tolerance

    def add(
        self,
        image: str | Path,
        size_hw: tuple[int, int],
        records: Sequence[Record],
        name: str | None = None,
    ) -> None:
        """Writes the results of one image, which may be none.

        Args:
            image: Path of the image.
            size_hw: Its height and width.
            records: See `records`.
            name: What the image is called in this folder, by default the name of its file; a
                relative path with folders keeps apart images of the same name.

        Raises:
            ValueError: A mask has not the image's size, or is none.
        """
        self._add(Path(image), Path(name or Path(image).name), size_hw, records)

    def _add(
        self, image: Path, name: Path, size_hw: tuple[int, int], records: Sequence[Record]
    ) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Ends the run: what is of all images is written."""

    def discard(self) -> None:
        """Ends a run that failed: what is of all images is not written."""

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the run, or drops what is of all images where it failed."""
        if error is None:
            self.close()
        else:
            self.discard()

    def _path_from(self, file: Path, image: Path) -> str:
        """The image's path from the folder of a file, which is how files can be moved together."""
        try:
            return Path(os.path.relpath(image, file.parent)).as_posix()
        except ValueError:  # another drive of Windows
            return image.absolute().as_posix()


class CocoWriter(Writer):
    """`coco.json`, one file for the run. Nothing but its categories is kept in memory."""

    first_category = 1
    file_name = "coco.json"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Opens two files, which become one in the end."""
        super().__init__(*arguments, **options)
        self._n_images = self._n_annotations = 0
        self._file = whole_file(self.folder / self.file_name)
        self._annotations = self._file.__enter__()
        self._annotations.write(b'{\n"annotations": [')
        self._images_path = self.folder / f".{self.file_name}.{os.getpid()}.images.part"
        self._images = self._images_path.open("w+b")

    def _add(
        self, image: Path, name: Path, size_hw: tuple[int, int], records: Sequence[Record]
    ) -> None:
        self.add_image(coco_image(self._n_images + 1, name.as_posix(), size_hw), records)

    def add_image(self, entry: dict[str, Any], records: Sequence[Record]) -> None:
        """Adds an image with an entry of its own, whose "id" the annotations name.

        Records that have "id" or "category_id", as those that come from annotations do, keep them.

        Raises:
            ValueError: A mask has not the image's size, or is none.
        """
        size_hw = entry["height"], entry["width"]
        made = []
        for index, record in enumerate(records, start=self._n_annotations + 1):
            category = record.get("category_id")
            if category is None:
                category = self.categories[label_of(record)]
            numbers = record.get("id", index), entry["id"], category
            made.append(coco_annotation(record, size_hw, numbers, self.exact, self.tolerance))
        _append(self._annotations, made, self._n_annotations > 0)
        _append(self._images, [entry], self._n_images > 0)
        self._n_annotations += len(made)
        self._n_images += 1

    def close(self) -> None:
        """Puts the file together and into its place."""
        try:
            self._annotations.write(b'\n],\n"images": [')
            self._images.seek(0)
            shutil.copyfileobj(self._images, self._annotations)
            categories = json.dumps(coco_categories(self.categories), ensure_ascii=False)
            self._annotations.write(f'\n],\n"categories": {categories}\n}}\n'.encode())
        except BaseException:
            self.discard()
            raise
        self._file.__exit__(None, None, None)
        self._drop_images()

    def discard(self) -> None:
        """Leaves an earlier file as it was."""
        error = RuntimeError("discarded")
        try:
            self._file.__exit__(RuntimeError, error, None)
        except RuntimeError as raised:
            if raised is not error:
                raise
        finally:
            self._drop_images()

    def _drop_images(self) -> None:
        self._images.close()
        self._images_path.unlink(missing_ok=True)


def _append(file: IO[bytes], entries: Sequence[dict[str, Any]], has_some: bool) -> None:
    """Adds entries to a JSON list that is being written, a line each."""
    for entry in entries:
        text = json.dumps(entry, ensure_ascii=False, separators=(",", ":"))
        file.write((",\n" if has_some else "\n").encode() + text.encode())
        has_some = True


class YoloWriter(Writer):
    """`labels/NAME.txt` for each image, and `data.yaml` with the names of categories.

    Categories of a `data.yaml` that is there keep their numbers, as the labels beside it need them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Reads the categories that the folder has."""
        super().__init__(*arguments, **options)
        self._description = self.folder / "data.yaml"
        if self._description.exists():
            asked, self.categories = self.categories, Categories(read_yolo_names(self._description))
            for label in asked:
                self.categories[label]

    def _add(
        self, image: Path, name: Path, size_hw: tuple[int, int], records: Sequence[Record]
    ) -> None:
        text = yolo_lines(size_hw, records, self.categories, self.tolerance)
        path = (self.folder / "labels" / name).with_suffix(".txt")
        with whole_file(path) as file:
            file.write(text.encode())

    def close(self) -> None:
        """Writes `data.yaml`."""
        with whole_file(self._description) as file:
            file.write(yolo_description(self.categories).encode())


class LabelmeWriter(Writer):
    """`labelme/NAME.json` for each image, which labelme finds by its path from there."""

    def _add(
        self, image: Path, name: Path, size_hw: tuple[int, int], records: Sequence[Record]
    ) -> None:
        path = (self.folder / "labelme" / name).with_suffix(".json")
        where = self._path_from(path, image)
        content = labelme_content(where, size_hw, records, self.exact, self.tolerance)
        with whole_file(path) as file:
            file.write(json.dumps(content, ensure_ascii=False, indent=1).encode())


class GeojsonWriter(Writer):
    """`geojson/NAME.geojson` for each image."""

    def _add(
        self, image: Path, name: Path, size_hw: tuple[int, int], records: Sequence[Record]
    ) -> None:
        path = (self.folder / "geojson" / name).with_suffix(".geojson")
        where = self._path_from(path, image)
        content = geojson_content(where, size_hw, records, self.tolerance)
        with whole_file(path) as file:
            file.write(json.dumps(content, ensure_ascii=False).encode())


class MapWriter(Writer):
    """`masks/NAME.png` for each image: an instance map with 16 bits, see `instance_map`."""

    def _add(
        self, image: Path, name: Path, size_hw: tuple[int, int], records: Sequence[Record]
    ) -> None:
        path = (self.folder / "masks" / name).with_suffix(".png")
        with whole_file(path) as file:
            file.write(png(instance_map(size_hw, records)))
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)  # of PngWriter, in the same place


class PngWriter(Writer):
    """`masks/NAME/000_LABEL.png`, ... for each image: a picture a mask, white on black."""

    def _add(
        self, image: Path, name: Path, size_hw: tuple[int, int], records: Sequence[Record]
    ) -> None:
        place = (self.folder / "masks" / name).with_suffix("")
        unfinished = place.with_name(f".{place.name}.{os.getpid()}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            digits = max(3, len(str(len(records))))
            for index, record in enumerate(records):
                mask = rle_to_mask(run_lengths(record, size_hw))
                file_name = f"{index:0{digits}d}_{_file_name(label_of(record))}.png"
                (unfinished / file_name).write_bytes(png(mask))
            shutil.rmtree(place, ignore_errors=True)
            place.with_suffix(".png").unlink(missing_ok=True)  # of MapWriter, in the same place
            unfinished.rename(place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _file_name(label: str) -> str:
    """The label without what names of files cannot have."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in label)[:60]


WRITERS: dict[str, type[Writer]] = {
    "coco": CocoWriter,
    "yolo": YoloWriter,
    "labelme": LabelmeWriter,
    "geojson": GeojsonWriter,
    "map": MapWriter,
    "png": PngWriter,
}
"""The formats, and what writes them."""


def open_writer(format: str, folder: str | Path, **options: Any) -> Writer:
    """A writer of a format of `WRITERS`.

    Args:
        format: Its name.
        folder: Where to write.
        options: See `Writer`.

    Raises:
        ValueError: There is no such format, or what is in the folder cannot be gone on with.
    """
    if format not in WRITERS:
        raise ValueError(f"format must be one of {', '.join(WRITERS)}, got {format!r}.")
    make: Callable[..., Writer] = WRITERS[format]
    return make(folder, **options)
