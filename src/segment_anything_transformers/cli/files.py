"""Images in and results out, for the command `segment-anything`."""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.files import IMAGE_ENDINGS
from ..data.pictures import png
from ..model.mask_ops import rle_to_mask
from ..prediction.visualization import draw_masks, draw_prompts
from ..prediction.whole_files import whole_file

MAX_OVERLAY_PIXELS = 4096 * 4096
"""Larger images are drawn smaller on their overlay; masks have the image's size."""


class UsageError(Exception):
    """What was asked for cannot be done; the message is one line for the person who asked."""


def one_line(error: object) -> str:
    """A message without its line breaks."""
    return " ".join(str(error).split())


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns what files, data, options and missing libraries raise into one line for the user."""
    try:
        yield
    except (OSError, ValueError, ModuleNotFoundError) as error:
        raise UsageError(one_line(error)) from error


def expand_images(named: Sequence[str], recursive: bool = False) -> list[str]:
    """The files that are meant: folders stand for the images in them, patterns for what fits.

    Args:
        named: Files, folders, and patterns such as "photos/*.jpg" that no shell has expanded.
        recursive: Whether folders stand for what lies below their folders, too.

    Raises:
        UsageError: There is no image in a folder, or nothing fits a pattern.
    """
    paths: list[str] = []
    for name in named:
        if Path(name).is_dir():
            inside = Path(name).rglob("*") if recursive else Path(name).iterdir()
            found = sorted(str(p) for p in inside if p.suffix.lower() in IMAGE_ENDINGS)
            if not found:
                more = "" if recursive else "; --recursive looks into its folders"
                raise UsageError(f"{name}: no image in this folder{more}")
        elif glob.has_magic(name) and not Path(name).exists():
            found = sorted(glob.glob(name, recursive=True))
            if not found:
                raise UsageError(f"{name}: no such file")
        else:
            found = [name]
        paths += [path for path in found if path not in paths]
    return paths


def check_names_differ(paths: Sequence[str]) -> None:
    """Refuses images whose results would overwrite each other.

    Raises:
        UsageError: Two images have the same name, but for folder and ending.
    """
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(Path(path).stem, path)
        if other is not path:
            raise UsageError(
                f"the results of {other} and {path} would have the same names; "
                "segment them apart, into different --output folders"
            )


def make_folder(folder: str) -> Path:
    """The folder, which exists from now on and can be written to.

    Raises:
        UsageError: It cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {folder}: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UsageError(f"--output {folder}: the folder cannot be written to")
    return path


def write_results(
    folder: Path,
    image_path: str,
    image: Image.Image,
    records: list[dict[str, Any]],
    about: dict[str, Any],
    json_only: bool = False,
    n_drawn: int | None = None,
) -> list[Path]:
    """Files for one image: a PNG for each mask, an overlay and a JSON that describes them all.

    Pictures of an earlier run on an image of this name that are not written now are removed.

    Args:
        folder: Where to write.
        image_path: Gives the files their names.
        image: The RGB picture.
        records: One a mask, its "segmentation" as COCO run lengths.
        about: What else the JSON tells, such as the model's name; its "prompts" are drawn.
        json_only: Write no PNG.
        n_drawn: How many masks are drawn on the overlay, from the first; by default all.

    Returns:
        The files that were written, the JSON last: where it is, the others are. The overlay of an
        image with more than `MAX_OVERLAY_PIXELS` is smaller than the image.
    """
    stem, digits = Path(image_path).stem, max(2, len(str(len(records) - 1)))
    written = []
    names: list[str | None] = [None] * len(records)
    if not json_only:
        for index, record in enumerate(records):
            names[index] = f"{stem}_mask_{index:0{digits}d}.png"
            written.append(folder / str(names[index]))
            _write(written[-1], png(rle_to_mask(record["segmentation"])))
        written.append(folder / f"{stem}_overlay.png")
        overlay = _overlay(image, records[:n_drawn], about.get("prompts", {}))
        _write(written[-1], png(overlay))
    description = {"image": image_path, "width": image.width, "height": image.height, **about}
    listed = [{"file": name, **record} for name, record in zip(names, records, strict=True)]
    written.append(folder / f"{stem}.json")
    _write(written[-1], _json(description, listed))
    pattern = re.compile(re.escape(stem) + r"_(mask_\d+|overlay)\.png")
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path not in written:
            path.unlink()
    return written


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def _overlay(
    image: Image.Image, records: list[dict[str, Any]], prompts: dict[str, Any]
) -> Image.Image:
    """The image with masks and prompts on it, at most `MAX_OVERLAY_PIXELS` large."""
    scale = min(1.0, (MAX_OVERLAY_PIXELS / (image.width * image.height)) ** 0.5)
    width, height = (max(1, int(side * scale)) for side in image.size)
    if scale < 1:
        image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    masks = _MasksAtSize(records, (width, height))
    scaled = {
        name: (np.array(prompts[name]) * scale).tolist()
        for name in ("points", "boxes")
        if name in prompts
    }
    return draw_prompts(
        draw_masks(image, masks), scaled.get("points"), prompts.get("labels"), scaled.get("boxes")
    )


class _MasksAtSize(Sequence[np.ndarray]):
    """The masks of records at a picture's size, each decoded when it is looked at."""

    def __init__(self, records: list[dict[str, Any]], size: tuple[int, int]) -> None:
        self.records, self.size = records, size

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        mask = rle_to_mask(self.records[index]["segmentation"])
        if mask.shape[::-1] == self.size:
            return mask
        return np.asarray(Image.fromarray(mask).resize(self.size, Image.Resampling.NEAREST))


def _json(description: dict[str, Any], masks: list[dict[str, Any]]) -> bytes:
    """The description and the masks as a JSON object, a line for each entry and for each mask."""
    text = partial(json.dumps, allow_nan=False)  # which would be no JSON
    entries = [f"{text(key)}: {text(value)}" for key, value in description.items()]
    listing = ",".join(f"\n    {text(mask)}" for mask in masks)
    entries.append(f'"masks": [{listing}\n  ]')
    return ("{\n  " + ",\n  ".join(entries) + "\n}\n").encode()
