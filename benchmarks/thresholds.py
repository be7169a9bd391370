"""What the thresholds of everything mode let through: objects found, and masks that are none.

    python -m examples.scenes.render --output scenes/train --count 4096
    python -m examples.photographs.label --output photographs ...
    python -m benchmarks.thresholds --scenes scenes/train --labelled photographs/held_out

Every mask of every click of the grid is made once, at the model's own resolution; then thresholds
and removal of duplicates are applied as the mask generator does. On scenes to learn from and on
photographs that another model labelled, so that a choice has not seen what `benchmarks.quality`
measures; and on its photographs. The table goes to docs/training.md. `make bench` leaves it out, as
it has no scenes.
"""

import argparse
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from benchmarks.quality import photographs, scenes
from benchmarks.speeds import measure, page
from examples.photographs.storage import full_size, read_square, square_files
from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
)
from segment_anything_transformers.data.samples import Sample
from segment_anything_transformers.evaluation.measures import masks_iou
from segment_anything_transformers.model.configuration_segment_anything import GENERATOR_THRESHOLDS
from segment_anything_transformers.model.mask_ops import (
    masks_to_boxes,
    nms,
    point_grid,
    resize_bilinear,
    stability_scores,
)

RESULTS = Path(__file__).parent / "results" / "thresholds.json"
PAGE = page.ROOT / "docs" / "training.md"
DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(SAMAutomaticMaskGenerator).parameters.items()
}
SHIPPED = (
    GENERATOR_THRESHOLDS["sam_vit_t"]["pred_iou_thresh"],
    GENERATOR_THRESHOLDS["sam_vit_t"]["stability_score_thresh"],
)
CHOICES = (
    (0.0, 0.0),
    (0.4, 0.0),
    (0.5, 0.0),
    (0.2, 0.5),
    (0.35, 0.5),
    SHIPPED,
    (0.2, 0.6),
    (0.5, 0.6),
    (0.2, 0.7),
    (0.2, 0.8),
)
"""Least predicted IoU and least stability; 0 keeps all."""


class Candidates(NamedTuple):
    """All masks of a picture's clicks, and how far each is an object."""

    iou_scores: np.ndarray
    """(n,) predicted."""
    stability: np.ndarray
    """(n,)"""
    boxes: np.ndarray
    """(n, 4), in pixels of the masks."""
    ious: np.ndarray
    """(n, objects) real ones."""

    @classmethod
    def of(cls, predictor: SAMPredictor, sample: Sample) -> "Candidates":
        """Of a click at each point of the generator's grid."""
        image, masks = np.asarray(sample.image), np.asarray(sample.masks)
        config = predictor.config
        size_hw = image.shape[:2]
        shrink = min(np.divide(config.mask_size(), size_hw))
        height, width = (max(1, round(side * shrink)) for side in size_hw)
        truth = resize_bilinear(masks.astype(np.float32), (height, width)) > 0.5
        predictor.set_image(image)
        points = point_grid(DEFAULTS["points_per_side"]) * size_hw[::-1]
        length = DEFAULTS["points_per_batch"]
        parts = []
        for start in range(0, len(points), length):
            made = predictor.predict_above(points[start : start + length, None], -np.inf)
            logits = made.mask_logits[:, :height, :width]
            found = logits > config.mask_threshold
            ious = np.stack([masks_iou(found, one) for one in truth], axis=1)
            stability = stability_scores(
                logits, config.mask_threshold, DEFAULTS["stability_score_offset"]
            )
            parts.append(cls(made.iou_scores, stability, masks_to_boxes(found), ious))
        predictor.clear_image()
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def kept(self, least_iou: float, least_stability: float) -> np.ndarray:
        """Real IoU (k, objects) of the masks that the generator would return."""
        good = np.ones(len(self.boxes), bool)
        if least_iou > 0:
            good &= self.iou_scores > least_iou
        if least_stability > 0:
            good &= self.stability >= least_stability
        (good,) = np.nonzero(good)
        unique = nms(self.boxes[good], self.iou_scores[good], DEFAULTS["box_nms_thresh"])
        return self.ious[good[unique]]


def labelled(folder: Path) -> list[Sample]:
    """Squares of photographs with the masks that another model found."""
    samples = []
    for file in square_files(folder):
        image, masks = read_square(file)
        full = np.stack([full_size(mask, len(image)) for mask in masks])
        samples.append(Sample(file.stem, image, full))
    return samples


def summary(pictures: list[Candidates], thresholds: tuple[float, float]) -> dict[str, float]:
    """Share of objects found at IoU 0.5, masks a picture, and the share of these that are one."""
    kept = [picture.kept(*thresholds) for picture in pictures]
    best = np.concatenate([ious.max(axis=0, initial=0.0) for ious in kept])
    hits = np.concatenate([ious.max(axis=1, initial=0.0) for ious in kept])
    return {
        "found": float(np.mean(best >= 0.5)),
        "masks": len(hits) / len(pictures),
        "objects": float(np.mean(hits >= 0.5)) if len(hits) else 0.0,
    }


def measured(predictor: SAMPredictor, samples: list[Sample]) -> list[dict[str, float]]:
    """A summary for each of `CHOICES`."""
    pictures = [Candidates.of(predictor, sample) for sample in tqdm(samples, unit="picture")]
    return [summary(pictures, thresholds) for thresholds in CHOICES]


def table(results: dict[str, Any]) -> str:
    """The part of the page."""
    kinds = results["pictures"]
    heads = ["predicted IoU above", "stability from"]
    for kind, count in kinds.items():
        heads.append(f"{count} {kind}: found / masks a picture / objects among them")
    rows = []
    for number, (least_iou, least_stability) in enumerate(CHOICES):
        row = [f"{value:g}" if value else "any" for value in (least_iou, least_stability)]
        if (least_iou, least_stability) == SHIPPED:
            row[0] += " (ours)"
        for kind in kinds:
            figures = results[kind][number]
            row.append(
                f"{figures['found']:.2f} / {figures['masks']:.0f} / {figures['objects']:.2f}"
            )
        rows.append(row)
    parts = ["Measured with `python -m benchmarks.thresholds` on:"]
    parts += [page.machine_lines(results["machine"]), page.table(heads, rows)]
    return "\n\n".join(parts)


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=Path, required=True, help="folder of scenes to learn from")
    parser.add_argument(
        "--labelled", type=Path, required=True, help="folder of labelled photographs, held out"
    )
    parser.add_argument("--count", type=int, default=36, help="number of scenes")
    options = parser.parse_args()
    predictor = SAMPredictor(SegmentAnythingModel.from_pretrained("sam_vit_t"))
    samples = {
        "scenes": scenes(options.scenes, options.count),
        "labelled squares": labelled(options.labelled),
        "photographs": photographs(),
    }
    results: dict[str, Any] = {
        "machine": measure.machine(2),
        "pictures": {kind: len(some) for kind, some in samples.items()},
        **{kind: measured(predictor, some) for kind, some in samples.items()},
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    page.write_part("thresholds", table(results), PAGE)
    print(table(results))


if __name__ == "__main__":
    main()
