"""How labelled squares lie in a folder: `NAME.jpg`, a picture, beside `NAME.npz`, its masks."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

JPEG_QUALITY = 92


def square_files(folder: Path) -> list[Path]:
    """The files of masks in a folder.

    Raises:
        FileNotFoundError: The folder has none.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise FileNotFoundError(
            f"No *.npz in {folder}. "
            "Label photographs first: python -m examples.photographs.label --help"
        )
    return files


def write_square(file: Path, image: Image.Image, masks: np.ndarray) -> None:
    """Writes a picture and then its boolean masks (K, s, s), of which any may overlap."""
    image.save(file.with_suffix(".jpg"), quality=JPEG_QUALITY)
    unfinished = file.with_suffix(".tmp")
    with open(unfinished, "wb") as opened:
        np.savez_compressed(opened, masks=np.packbits(masks, axis=-1))
    unfinished.rename(file)


def read_square(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The picture (S, S, 3) and the masks (K, s, s), of 0 and 1."""
    with Image.open(file.with_suffix(".jpg")) as opened:
        image = np.asarray(opened)
    with np.load(file) as arrays:
        bits = arrays["masks"]
    return image, np.unpackbits(bits, axis=-1, count=bits.shape[1])


def full_size(mask: np.ndarray, side: int) -> np.ndarray:
    """A mask (s, s) of 0 and 1 as a boolean one (side, side), with smooth edges."""
    levels = cv2.resize(mask * 255, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.asarray(levels > 127)
