"""Decoded pictures of one split, packed into a few flat files that workers map into memory."""

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.scenes import sources

PIECE_SIDE = 384
PHOTO_SIDE = 2048
SMALLEST_PHOTO_SIDE = 384

Picture = NDArray[np.uint8]
# Pairs of a group's number and an image.
Images = Iterator[tuple[int, Picture]]


class PackedImages:
    """Images of different sizes in one flat file, read through a memory map.

    The folder holds `pixels.npy` (uint8, flat) and `index.npy` (int64, rows of offset, height,
    width, group); every image has the same number of channels. A group gathers the images that
    come from one source file: the sizes of a photograph, the views of a body.
    """

    def __init__(self, pixels: Picture, index: NDArray[np.int64], channels: int) -> None:
        """Wrap flat pixels and their index."""
        self.pixels = pixels
        self.index = index
        self.channels = channels
        self.groups = [np.flatnonzero(index[:, 3] == group) for group in np.unique(index[:, 3])]

    def __len__(self) -> int:
        """The number of images."""
        return len(self.index)

    def __getitem__(self, position: int) -> Picture:
        """The image at a position, as a read-only view, (height, width, channels)."""
        offset, height, width, _ = (int(value) for value in self.index[position])
        flat = self.pixels[offset : offset + height * width * self.channels]
        return flat.reshape(height, width, self.channels)

    def random(self, rng: np.random.Generator) -> Picture:
        """A random image of a random group: every source file is as likely as every other."""
        group = self.groups[rng.integers(len(self.groups))]
        return self[int(group[rng.integers(len(group))])]

    @classmethod
    def empty(cls, channels: int) -> "PackedImages":
        """A pool without images."""
        return cls(np.zeros(0, np.uint8), np.zeros((0, 4), np.int64), channels)

    @classmethod
    def pack(cls, images: Iterable[tuple[int, Picture]], channels: int) -> "PackedImages":
        """A pool in memory, from pairs of a group's number and an image."""
        pairs = list(images)
        if not pairs:
            return cls.empty(channels)
        index = _index([(group, *image.shape[:2]) for group, image in pairs], channels)
        return cls(np.concatenate([image.reshape(-1) for _, image in pairs]), index, channels)

    @classmethod
    def open(cls, folder: Path, channels: int) -> "PackedImages":
        """The pool in a folder; an empty one if the folder has none."""
        if not (folder / "index.npy").is_file():
            return cls.empty(channels)
        index = np.load(folder / "index.npy")
        if not len(index):
            return cls.empty(channels)
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        return cls(pixels, index, channels)


def _index(rows: list[tuple[int, int, int]], channels: int) -> NDArray[np.int64]:
    """Index rows (offset, height, width, group) from (group, height, width)."""
    shapes = np.array(rows, np.int64).reshape(-1, 3)
    sizes = shapes[:, 1] * shapes[:, 2] * channels
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) if len(rows) else sizes
    return np.stack([offsets, shapes[:, 1], shapes[:, 2], shapes[:, 0]], axis=1).astype(np.int64)


def write_pool(folder: Path, images: Images, channels: int) -> None:
    """Write a pool to a folder, one image at a time; `index.npy` last, as the sign of success."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[int, int, int]] = []
    raw = folder / f"pixels.{os.getpid()}.raw"
    with raw.open("wb") as stream:
        for group, image in images:
            stream.write(np.ascontiguousarray(image).tobytes())
            rows.append((group, *image.shape[:2]))
    index = _index(rows, channels)
    _prepend_header(raw, folder / "pixels.npy")
    temporary = folder / f"index.{os.getpid()}.npy"
    np.save(temporary, index)
    temporary.replace(folder / "index.npy")


def _prepend_header(raw: Path, target: Path) -> None:
    """Turn a file of bytes into a flat uint8 .npy file, in pieces of 16 MiB."""
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    header = {"descr": "|u1", "fortran_order": False, "shape": (raw.stat().st_size,)}
    with temporary.open("wb") as stream, raw.open("rb") as source:
        np.lib.format.write_array_header_1_0(stream, header)
        while chunk := source.read(1 << 24):
            stream.write(chunk)
    temporary.replace(target)
    raw.unlink()


@dataclass
class Pools:
    """What scenes of one split are made of.

    Attributes:
        clips: Cut-out drawings, RGBA.
        bodies: Cut-out renders of single 3D objects, RGBA.
        rooms: Whole 3D scenes, RGB and an instance number as the fourth channel.
        photographs: Photographs at several sizes, RGB.
        designs: Drawn or computed wallpapers at several sizes, RGB.
    """

    clips: PackedImages
    bodies: PackedImages
    rooms: PackedImages
    photographs: PackedImages
    designs: PackedImages

    @classmethod
    def open(cls, folder: Path) -> "Pools":
        """The pools in a folder; those that are missing are empty."""
        return cls(**{name: PackedImages.open(folder / name, CHANNELS[name]) for name in CHANNELS})

    @classmethod
    def empty(cls) -> "Pools":
        """Pools without a picture: scenes of shapes alone."""
        return cls(**{name: PackedImages.empty(CHANNELS[name]) for name in CHANNELS})


CHANNELS = {"clips": 4, "bodies": 4, "rooms": 4, "photographs": 3, "designs": 3}


def fill_outside(rgb: Picture, alpha: Picture) -> Picture:
    """The picture with the colour of the nearest opaque pixel where it is transparent.

    Without this a resized edge would mix in the black or white that hides under zero alpha.
    """
    hidden = (alpha < 128).astype(np.uint8)
    if not hidden.any() or hidden.all():
        return rgb
    _, labels = cv2.distanceTransformWithLabels(
        hidden, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colour_of_label = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    opaque = hidden == 0
    colour_of_label[labels[opaque]] = rgb[opaque]
    return np.where(hidden[..., None] > 0, colour_of_label[labels], rgb)


def is_useful_piece(alpha: Picture) -> bool:
    """Whether an alpha channel, cropped to its box, shows one solid thing.

    Args:
        alpha: Opacity, (height, width).
    """
    height, width = alpha.shape
    if max(height, width) < 48 or min(height, width) < 12:
        return False
    solid = (alpha > 127).astype(np.uint8)
    area = int(solid.sum())
    translucent = int((alpha > 20).sum()) - int((alpha > 200).sum())
    if area < 0.12 * height * width or translucent > 0.5 * area:
        return False
    # Line art and lettering vanish when their outline is peeled by 2% of their size.
    radius = max(1, round(0.02 * max(height, width)))
    peeled = cv2.erode(cv2.copyMakeBorder(solid, 1, 1, 1, 1, cv2.BORDER_CONSTANT), _disc(radius))
    if int(peeled.sum()) < 0.3 * area:
        return False
    _, _, statistics, _ = cv2.connectedComponentsWithStats(solid, connectivity=8)
    return bool(statistics[1:, cv2.CC_STAT_AREA].max() >= 0.8 * area)


def _disc(radius: int) -> Picture:
    shape = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(shape, np.uint8)


def crop_to_alpha(rgba: Picture) -> Picture:
    """The part of an RGBA picture that is not transparent."""
    rows = np.flatnonzero((rgba[..., 3] > 20).any(axis=1))
    columns = np.flatnonzero((rgba[..., 3] > 20).any(axis=0))
    if not len(rows):
        return rgba[:0, :0]
    return rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def limit_side(picture: Picture, side: int) -> Picture:
    """The picture, shrunk so that its longer side is at most `side` pixels."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def clip_pieces(files: list[sources.SourceFile]) -> Images:
    """Clip art that shows one solid thing, cropped, RGBA; each content once."""
    seen: set[int] = set()
    for group, file in enumerate(files):
        rgba = _decode(file.path, "RGBA")
        if rgba is None or not (cropped := crop_to_alpha(rgba)).size:
            continue
        piece = limit_side(cropped, PIECE_SIDE)
        content = hash(piece.tobytes())
        if content in seen or not is_useful_piece(piece[..., 3]):
            continue
        # Full sheets are flags and signs: a few are enough.
        if (piece[..., 3] > 127).mean() > 0.985 and group % 4:
            continue
        seen.add(content)
        filled = fill_outside(piece[..., :3], piece[..., 3])
        yield group, np.dstack([filled, piece[..., 3]])


def photo_levels(files: list[sources.SourceFile]) -> Images:
    """Every picture at full, half, quarter... size, RGB."""
    for group, file in enumerate(files):
        decoded = _decode(file.path, "RGB")
        if decoded is None:
            continue
        level = limit_side(decoded, PHOTO_SIDE)
        yield group, level
        while min(level.shape[:2]) >= 2 * SMALLEST_PHOTO_SIDE:
            level = limit_side(level, max(level.shape[:2]) // 2)
            yield group, level


def _decode(path: Path, mode: str) -> Picture | None:
    """The picture in a file; None, with one line that says so, if it cannot be used."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.draft(mode, (PHOTO_SIDE, PHOTO_SIDE))
                return np.asarray((picture if mode == "RGBA" else _on_grey(picture)).convert(mode))
    except (OSError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        print(f"scenes: cannot use {path}, skipped", file=sys.stderr)
        return None


def _on_grey(picture: Image.Image) -> Image.Image:
    """The picture, on grey where it is transparent."""
    if picture.mode not in {"RGBA", "LA", "PA"} and "transparency" not in picture.info:
        return picture
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (128, 128, 128, 255)), rgba)
