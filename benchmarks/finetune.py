"""What fine-tuning gains on a domain that the model never saw: cells under a microscope.

    python -m benchmarks.finetune                        15 minutes; figures and pictures into docs
    python -m benchmarks.finetune --minutes 1 --no-docs  a try

The mask decoder of `sam_vit_t` learns from 64 drawn pictures, on embeddings that are kept; others
are measured before and after. The results go to benchmarks/results, the loss curve and cells before
and after to docs/images, and the page on fine-tuning shows them.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from tqdm import tqdm
from transformers import TrainerCallback, pipeline

from benchmarks.finetuning import page, pictures
from benchmarks.finetuning.cells import write_cells
from benchmarks.speeds.measure import machine
from segment_anything_transformers import (
    SAMPredictor,
    SegmentAnythingModel,
    SegmentAnythingProcessor,
    draw_masks,
    draw_prompts,
    evaluate,
    finetune,
    load_samples,
)
from segment_anything_transformers.data.samples import Samples
from segment_anything_transformers.evaluation.measures import masks_iou
from segment_anything_transformers.evaluation.report import draw_worst, quality_table
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from segment_anything_transformers.model.mask_ops import deepest_point
from segment_anything_transformers.training.finetuning import Finetuned

CLICKS = [1, 3]
SETTINGS: dict[str, Any] = {"objects_per_image": 6, "learning_rate": 5e-4, "save_strategy": "no"}
SHOWN = 2
FOUND = 0.5
"""IoU of a mask that finds an object."""


class StopAfter(TrainerCallback):
    """Ends the training when its time is up."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= time.monotonic() > self.end


def clicked(model: SegmentAnythingModel, samples: Samples):
    """Each picture with the mask that one click gives for each of its objects."""
    predictor, drawn = SAMPredictor(model), []
    for sample in samples:
        predictor.set_image(sample.image)
        points = [deepest_point(mask)[1] for mask in sample.masks]
        masks, scores, _ = predictor(points=np.array(points)[:, None])
        best = [three[own.argmax()] for three, own in zip(masks, scores, strict=True)]
        drawn.append(draw_prompts(draw_masks(sample.image, best), points))
    return drawn


def share_found(folder: Path, samples: Samples) -> float:
    """Share of the objects that transformers' own pipeline finds, with 16 x 16 clicks.

    Args:
        folder: Of the model and its processor.
        samples: Pictures with true masks.
    """
    generate = pipeline("mask-generation", model=str(folder))
    options = {"points_per_crop": 16, **GENERATOR_THRESHOLDS["sam_vit_t"]}
    found: list[bool] = []
    for sample in tqdm(samples, unit="picture"):
        masks = generate(Image.fromarray(sample.image), **options)["masks"]
        for truth in sample.masks:
            found.append(any(masks_iou(np.asarray(mask, bool), truth) >= FOUND for mask in masks))
    return float(np.mean(found))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="sam_vit_t")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--steps", type=int, default=1200, help="the most steps")
    parser.add_argument("--mode", default="decoder", choices=("decoder", "lora", "all"))
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--clicks", type=int, default=3, help="corrections in training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--no-docs", action="store_true", help="write to the output folder alone")
    return parser.parse_args()


def learn(model: SegmentAnythingModel, train: Samples, options: argparse.Namespace) -> Finetuned:
    return finetune(
        model,
        train,
        options.output / "tuned",
        mode=options.mode,
        max_steps=options.steps,
        clicks=options.clicks,
        callbacks=[StopAfter(60 * options.minutes)],
        use_cpu=True,
        **SETTINGS,
    )


def main() -> None:
    options = arguments()
    shutil.rmtree(options.output, ignore_errors=True)
    train = load_samples(write_cells(options.output / "cells", options.images, seed=1))
    held_out = load_samples(write_cells(options.output / "held-out", options.held_out, seed=2))
    model = SegmentAnythingModel.from_pretrained(options.model)
    before = evaluate(model, held_out, CLICKS)
    for part in (model, SegmentAnythingProcessor.from_pretrained(options.model)):
        part.save_pretrained(options.output / "start")
    found = {"before": share_found(options.output / "start", held_out[: page.SEARCHED])}
    columns = {"one click each, before": clicked(model, held_out[:SHOWN])}
    start = time.monotonic()
    result = learn(model, train, options)
    seconds = time.monotonic() - start
    after = evaluate(result.model, held_out, CLICKS)
    found["after"] = share_found(options.output / "tuned", held_out[: page.SEARCHED])
    print(f"share of the objects that the pipeline finds: {found}")
    for name, evaluation in (("before", before), ("after", after)):
        Console().print(quality_table(evaluation, f"{name} ({seconds:.0f} s of training)"))
        draw_worst(evaluation, held_out).save(options.output / f"worst-{name}.png")
    columns["after"] = clicked(result.model, held_out[:SHOWN])
    columns["the truth"] = [draw_masks(s.image, list(s.masks)) for s in held_out[:SHOWN]]
    folder = options.output if options.no_docs else page.IMAGES
    pictures.plot_losses(result.log, folder / page.LOSS)
    pictures.show_in_rows(columns, folder / page.CELLS)
    if not options.no_docs:
        figures = {
            "machine": machine(options.threads),
            "model": options.model,
            "mode": options.mode,
            "images": options.images,
            "settings": {"clicks": options.clicks, **SETTINGS},
            "seconds": seconds,
            "steps": result.log[-1]["step"],
            "before": {**before.means()["all"], "pipeline": found["before"]},
            "after": {**after.means()["all"], "pipeline": found["after"]},
        }
        page.keep("finetune", figures)


if __name__ == "__main__":
    main()
