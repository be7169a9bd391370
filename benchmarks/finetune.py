"""What fine-tuning gains on a domain that the model never saw: cells under a microscope.

    python benchmarks/finetune.py                 # 15 minutes of training
    python benchmarks/finetune.py --minutes 1     # a try

Cells are drawn: membranes and nuclei of irregular outline, crowded, out of focus, stained, with
noise. The mask decoder of `sam_vit_t` learns from 64 pictures on embeddings that are kept; 24
others are measured before and after. Writes the figures, the loss curve and the worst objects
before and after; with --docs the pictures go where the documentation shows them.
"""

import argparse
import json
import os
import platform
import shutil
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console
from scipy import ndimage
from transformers import TrainerCallback

from segment_anything_transformers import SegmentAnythingModel, evaluate, load_samples
from segment_anything_transformers.annotations import folder_samples
from segment_anything_transformers.evaluation_report import draw_worst, quality_table
from segment_anything_transformers.finetuning import finetune

SIDE = 384
CLICKS = [1, 3]


def outline(random, centre, radius):
    """The polygon of a cell: a circle with a few slow waves on it."""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    waves = sum(
        random.normal(0, 0.09 / k) * np.cos(k * angles + random.uniform(0, 6)) for k in (1, 2, 3, 4)
    )
    stretch = random.uniform(0.75, 1.25)
    reach = radius * (1 + waves)
    x, y = (
        centre[0] + reach * np.cos(angles) * stretch,
        centre[1] + reach * np.sin(angles) / stretch,
    )
    return list(zip(x.tolist(), y.tolist(), strict=True))


def filled(polygon):
    picture = Image.new("L", (SIDE, SIDE))
    ImageDraw.Draw(picture).polygon(polygon, 255)
    return np.asarray(picture) > 0


def smooth_noise(random, scale):
    noise = ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE)), scale)
    return noise / noise.std()


def draw_cells(random):
    """A picture (H, W, 3) of stained cells and their ids (H, W)."""
    stain, nucleus = random.uniform(0.25, 0.6, 3), random.uniform(0.3, 0.75, 3)
    density = np.full((SIDE, SIDE, 3), 0.05) + 0.02 * smooth_noise(random, 25)[..., None]
    ids, count = np.zeros((SIDE, SIDE), np.uint8), 0
    for _ in range(60):
        radius = random.uniform(14, 38)
        centre = random.uniform(radius, SIDE - radius, 2)
        cell = filled(outline(random, centre, radius))
        if (cell & (ids > 0)).mean() > 0.02 * cell.mean() or count == 18:
            continue
        cell &= ids == 0
        count += 1
        ids[cell] = count
        depth = ndimage.distance_transform_edt(cell)
        body = cell * (0.35 + 0.12 * smooth_noise(random, 2)) + 0.5 * (cell & (depth < 2.5))
        at = centre + random.normal(0, radius / 8, 2)
        core = filled(outline(random, at, radius * random.uniform(0.25, 0.45))) & cell
        core = ndimage.gaussian_filter(core.astype(float), 1) * (1 + 0.2 * smooth_noise(random, 1))
        density += body[..., None] * stain + core[..., None] * nucleus
    light = np.exp(-ndimage.gaussian_filter(density, (random.uniform(0.5, 1.6),) * 2 + (0,)))
    light = light * (1 + 0.03 * smooth_noise(random, 60)[..., None])
    light = light + random.normal(0, 0.02, light.shape)
    return np.clip(235 * light, 0, 255).astype(np.uint8), ids


def write_cells(folder, count, seed):
    random = np.random.default_rng(seed)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, ids = draw_cells(random)
        Image.fromarray(image).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(ids).save(folder / "masks" / f"{number:03}.png")
    return folder


class StopAfter(TrainerCallback):
    """Ends the training when its time is up."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= time.monotonic() > self.end


def loss_curve(log, size=(640, 260)):
    """Losses by step as a line, with a smoothed one in front."""
    steps, losses = np.array([(e["step"], e["loss"]) for e in log if "loss" in e]).T
    picture = Image.new("RGB", size, "white")
    draw, (left, top, right, bottom) = ImageDraw.Draw(picture), (50, 15, size[0] - 15, size[1] - 30)
    high = losses.max() * 1.05
    smooth = ndimage.gaussian_filter1d(losses, max(1, len(losses) / 40), mode="nearest")
    for values, colour, width in ((losses, "#bfdbfe", 1), (smooth, "#1d4ed8", 3)):
        x = left + (right - left) * steps / steps.max()
        y = bottom - (bottom - top) * values / high
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), colour, width)
    draw.line([(left, top), (left, bottom), (right, bottom)], "black")
    draw.text((5, top), f"{high:.1f}", "black", font_size=12)
    draw.text((5, bottom - 12), "loss 0", "black", font_size=12)
    draw.text((right - 70, bottom + 8), f"{steps.max():.0f} steps", "black", font_size=12)
    return picture


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="sam_vit_t")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--steps", type=int, default=2000, help="the most steps")
    parser.add_argument("--mode", default="decoder", choices=("decoder", "lora", "all"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--clicks", type=int, default=3, help="corrections in training")
    parser.add_argument("--output", type=Path, default=Path("finetune-benchmark"))
    parser.add_argument("--docs", type=Path, help="folder for the documentation's pictures")
    options = parser.parse_args()
    train = write_cells(options.output / "cells", options.images, seed=1)
    held_out = load_samples(write_cells(options.output / "held-out", options.held_out, seed=2))
    shutil.rmtree(options.output / "tuned", ignore_errors=True)

    model = SegmentAnythingModel.from_pretrained(options.model)
    before = evaluate(model, held_out, CLICKS)
    start = time.monotonic()
    result = finetune(
        model,
        folder_samples(train),
        options.output / "tuned",
        mode=options.mode,
        max_steps=options.steps,
        clicks=options.clicks,
        objects_per_image=6,
        save_strategy="no",
        learning_rate=5e-4,
        callbacks=[StopAfter(60 * options.minutes)],
    )
    seconds = time.monotonic() - start
    after = evaluate(result.model, held_out, CLICKS)
    figures = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "seconds": seconds,
        "steps": result.log[-1]["step"],
        "before": before.means()["all"],
        "after": after.means()["all"],
    }
    (options.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    for name, evaluation in (("before", before), ("after", after)):
        Console().print(quality_table(evaluation, f"{name} ({seconds:.0f} s of training)"))
    folder = options.docs or options.output
    loss_curve(result.log).save(folder / "finetune-loss.png")
    draw_worst(before, held_out, 4).save(folder / "finetune-before.png")
    same = [(quality.image, quality.number) for quality in before.worst(4)]
    after.objects.sort(key=lambda q: (q.image, q.number) not in same)
    after.objects[4:] = []
    draw_worst(after, held_out, 4).save(folder / "finetune-after.png")


if __name__ == "__main__":
    main()
