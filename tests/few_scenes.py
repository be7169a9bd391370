"""Scenes that need no rendering, and photographs that need no other model."""

from pathlib import Path

import numpy as np
from PIL import Image

from examples.photographs.storage import write_square

SIDE = 256


def write_scenes(folder: Path) -> Path:
    """Writes four scenes of a grey ground with a large disc and a small square into a folder."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    instances = np.zeros((4, SIDE, SIDE), np.uint8)
    instances[:, (rows - 120) ** 2 + (columns - 130) ** 2 < 80**2] = 1
    instances[:, 220:240, 20:40] = 2
    images = np.full((4, SIDE, SIDE, 3), 90, np.uint8)
    images[instances == 1] = (200, 60, 40)
    images[instances == 2] = (30, 160, 220)
    np.save(folder / "instances-00000.npy", instances)
    np.save(folder / "images-00000.npy", images)
    return folder


def write_grey_square(folder: Path, name: str, masks: np.ndarray) -> None:
    """Writes a grey square with masks (K, S, S) that may overlap, as photographs are labelled."""
    image = Image.new("RGB", masks.shape[1:], (128, 128, 128))
    write_square(folder / f"{name}.npz", image, masks)
