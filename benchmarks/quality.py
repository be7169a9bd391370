"""How good a model's masks are: held-out scenes, and photographs with outlines drawn by hand.

    python -m examples.scenes.render --output scenes/held_out --split held_out --count 512
    python benchmarks/quality.py --scenes scenes/held_out

One box, or one click at the point deepest inside, for each object; the mask is compared at the
size of the picture. `single` is the model's single mask, `best` the one of its three that it
scores highest itself. The filled box and OpenCV's GrabCut answer the same boxes.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from segment_anything_transformers import SAMPredictor, SegmentAnythingModel

PHOTOGRAPHS = Path(__file__).parent / "photographs"
SIZES = {"all": (0.0, 9.0), "under 5%": (0.0, 0.05), "5% to 20%": (0.05, 0.2), "over 20%": (0.2, 9)}


def scenes(folder: Path, count: int):
    """Image (H, W, 3) and masks (P, H, W) of rendered scenes."""
    for shard in sorted(folder.glob("images-*.npy")):
        maps = np.load(shard.with_name(shard.name.replace("images", "instances")), mmap_mode="r")
        for image, instances in zip(np.load(shard, mmap_mode="r"), maps, strict=True):
            if count == 0:
                return
            count -= 1
            ids = np.unique(instances)
            yield np.asarray(image), instances == ids[ids > 0][:, None, None]


def photographs():
    """Image (H, W, 3) and masks (P, H, W) of the photographs of scikit-image."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    for name, objects in json.loads((PHOTOGRAPHS / "objects.json").read_text()).items():
        image = np.asarray(Image.open(folder / name).convert("RGB"))
        masks = np.zeros((len(objects), *image.shape[:2]), np.uint8)
        for mask, outline in zip(masks, objects.values(), strict=True):
            cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
        yield image, masks.astype(bool)


def box_of(mask):
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return np.array([left, top, left + width - 1, top + height - 1], np.float32)


def click_in(mask):
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return np.unravel_index(depth.argmax(), depth.shape)[::-1]


def filled_box(mask, box):
    filled = np.zeros_like(mask)
    left, top, right, bottom = box.astype(int)
    filled[top : bottom + 1, left : right + 1] = True
    return filled


def grab_cut(image, box):
    labels = np.zeros(image.shape[:2], np.uint8)
    left, top, right, bottom = box.astype(int)
    rectangle = (left, top, right - left + 1, bottom - top + 1)
    if min(rectangle[2:]) < 2 or (rectangle[2] * rectangle[3]) >= labels.size:
        return filled_box(labels.astype(bool), box)
    history = np.zeros((2, 1, 65))
    cv2.grabCut(image, labels, rectangle, history[0], history[1], 5, cv2.GC_INIT_WITH_RECT)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def iou(masks, truth):
    return (masks & truth).sum((-2, -1)) / np.maximum((masks | truth).sum((-2, -1)), 1)


def measure(predictor, pictures, total, with_grab_cut):
    """One row of IoUs an object, and its longer side over the picture's."""
    rows = []
    for image, truth in tqdm(pictures, total=total, unit="picture"):
        predictor.set_image(image)
        for mask in truth:
            box, click = box_of(mask), np.array(click_in(mask), np.float32)
            row = {"side": (box[2:] - box[:2] + 1).max() / max(image.shape[:2])}
            row["filled box"] = iou(filled_box(mask, box), mask)
            if with_grab_cut:
                row["GrabCut"] = iou(grab_cut(image, box), mask)
            for kind, prompt in (("box", {"boxes": box[None]}), ("click", {"points": click[None]})):
                three, scores, _ = predictor(**prompt)
                single, _, _ = predictor(**prompt, multimask_output=False)
                row[f"{kind}, single"] = iou(single[0], mask)
                row[f"{kind}, best"] = iou(three[scores.argmax()], mask)
                row[f"{kind}, oracle"] = iou(three, mask).max()
            rows.append(row)
    return rows


def summarise(rows):
    """Mean IoU by the size of the objects."""
    table = {}
    for name, (low, high) in SIZES.items():
        chosen = [row for row in rows if low <= row["side"] < high]
        means = {k: float(np.mean([row[k] for row in chosen])) for k in rows[0] if k != "side"}
        table[name] = {"objects": len(chosen), **(means if chosen else {})}
    return table


def show(title, summary):
    columns = list(summary["all"])
    table = Table("objects' longer side", *columns, title=title)
    for name, figures in summary.items():
        cells = [figures.get(column, float("nan")) for column in columns]
        table.add_row(name, *(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells))
    Console().print(table)


def section(results):
    """The section Quality as Markdown: one table for each kind of pictures."""
    lines = ["## Quality", "", "Mean IoU, by the objects' longer side over the picture's. Measured"]
    lines += [f"with `python benchmarks/quality.py` ({results['machine']}).", ""]
    for title in ("held-out scenes", "photographs"):
        summary = results.get(title)
        if summary is None:
            continue
        columns = list(summary["all"])
        lines += [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, figures in summary.items():
            cells = [figures.get(column, "") for column in columns]
            cells = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="sam_vit_t")
    parser.add_argument("--scenes", type=Path, help="folder of held-out scenes")
    parser.add_argument("--count", type=int, default=128, help="number of scenes")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--readme", type=Path, help="text whose section Quality is written anew")
    options = parser.parse_args()
    predictor = SAMPredictor(SegmentAnythingModel.from_pretrained(options.model))
    results = {"model": options.model, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    if options.scenes:
        pictures = scenes(options.scenes, options.count)
        results["held-out scenes"] = summarise(measure(predictor, pictures, options.count, False))
        show("Mean IoU, held-out scenes", results["held-out scenes"])
    results["photographs"] = summarise(measure(predictor, photographs(), 6, True))
    show("Mean IoU, photographs", results["photographs"])
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    if options.readme:
        text = options.readme.read_text().partition("## Quality")[0]
        options.readme.write_text(text + section(results))


if __name__ == "__main__":
    main()
