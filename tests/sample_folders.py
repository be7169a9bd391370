"""Folders of images and masks for tests: bright rectangles on noise."""

import json

import numpy as np
from PIL import Image

from segment_anything_transformers.data.samples import Sample
from segment_anything_transformers.model.mask_ops import masks_to_rles


def rectangles(seed, size_hw=(64, 64), count=2):
    """An image (H, W, 3) and masks (P, H, W) of rectangles that do not overlap."""
    rng = np.random.default_rng(seed)
    height, width = size_hw
    image = rng.integers(0, 60, (height, width, 3), np.uint8)
    masks = np.zeros((count, height, width), bool)
    for index, mask in enumerate(masks):
        band = width // count
        left = band * index + int(rng.integers(2, band // 3))
        top = int(rng.integers(4, height // 3))
        bottom = int(rng.integers(height // 2, height - 4))
        mask[top:bottom, left : left + band // 2] = True
        image[mask] += rng.integers(60, 190, 3, np.uint8)
    return image, masks


def rectangle_samples(count, size_hw=(64, 64), objects=2):
    """Samples named 0, 1, ... that are in memory."""
    return [Sample(str(seed), *rectangles(seed, size_hw, objects)) for seed in range(count)]


def instance_ids(masks):
    """One picture (H, W) uint8 of masks (P, H, W): 1 to P, 0 where there is none."""
    return (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(axis=0).astype(np.uint8)


def write_folder(folder, count=3, size_hw=(64, 64), objects=2):
    """Writes images/0.png, ... and masks/0.png, ... of instance ids; returns the folder."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for seed in range(count):
        image, masks = rectangles(seed, size_hw, objects)
        Image.fromarray(image).save(folder / "images" / f"{seed}.png")
        Image.fromarray(instance_ids(masks)).save(folder / "masks" / f"{seed}.png")
    return folder


def hide_rows(folder, rows=8, value=255):
    """Gives the first rows of every mask in the folder a value of their own."""
    for path in (folder / "masks").iterdir():
        ids = np.array(Image.open(path))
        ids[:rows] = value
        Image.fromarray(ids).save(path)


def write_coco(path, count=3):
    """Writes annotations of the images and masks that `write_folder` writes."""
    images, annotations = [], []
    for seed in range(count):
        images.append({"id": seed, "file_name": f"{seed}.png"})
        for rle in masks_to_rles(rectangles(seed)[1]):
            annotations.append({"image_id": seed, "segmentation": rle})
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
