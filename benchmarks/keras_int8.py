"""What 8 bits cost a Keras model: how well its masks agree with those in float32, and file sizes.

    python -m benchmarks.keras_int8

A grid of clicks in the photograph of the page is answered by `sam_vit_t` as it is and after
`quantize("int8")`; of each click the mask counts that the first one rates highest. docs/how-to/
tensorflow.md quotes it.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segment_anything_transformers import SAMPredictor, TFSegmentAnythingModel
from segment_anything_transformers.evaluation.measures import masks_iou
from segment_anything_transformers.model.mask_ops import point_grid

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = ROOT / "src" / "segment_anything_transformers" / "demo" / "coffee.jpg"
POINTS_PER_SIDE = 6


def agreement(model: Any, rounded: Any, image: Image.Image, points_per_side: int) -> np.ndarray:
    """IoU of both models' masks for each click of a grid."""
    clicks = point_grid(points_per_side)[:, None] * image.size
    answers = []
    for one in (model, rounded):
        predictor = SAMPredictor(one)
        predictor.set_image(image)
        answers.append(predictor(points=clicks)[:2])
    (masks, scores), (others, _) = answers
    best = scores.argmax(axis=1)
    return np.array([masks_iou(others[i, k], masks[i, k]) for i, k in enumerate(best)])


def main() -> None:
    """Prints agreement and sizes."""
    model, rounded = (TFSegmentAnythingModel.from_pretrained("sam_vit_t") for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about layers without matrices
        rounded.quantize("int8")
    ious = agreement(model, rounded, Image.open(PHOTOGRAPH), POINTS_PER_SIDE)
    print(f"{len(ious)} clicks: IoU {ious.mean():.3f} on average, {ious.min():.3f} at least")
    with tempfile.TemporaryDirectory() as folder:
        for name, one in (("float32", model), ("int8", rounded)):
            path = Path(folder) / f"{name}.keras"
            one.save(path)
            print(f"{name}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
