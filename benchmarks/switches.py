"""What the switches that are off by default cost in quality, and save in work.

    python -m benchmarks.switches

Everything in the photographs of scikit-image with the model in the package, at thresholds that let
three masks in ten pass. `found again` is the share of the masks found without the switch of which
one found with it has an IoU of at least 0.9 (0.98 for a precision).
"""

import warnings
from typing import Any

import numpy as np
import skimage.data
from rich.console import Console
from rich.table import Table

from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
    mask_ops,
)

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SWITCHES: dict[str, tuple[dict[str, Any], float]] = {
    "skip_covered_points=True": ({"skip_covered_points": True}, 0.9),
    'dtype="bfloat16"': ({"dtype": "bfloat16"}, 0.98),
    'dtype="float16"': ({"dtype": "float16"}, 0.98),
}


def everything(model, image, points_per_side=32, **options):
    """Masks of an image, and how many points the model was asked about."""
    predictor = SAMPredictor(model)
    predictor.set_image(image)
    clicks = mask_ops.point_grid(8)[:, None] * image.shape[1::-1]
    threshold = float(np.quantile(predictor.predict_logits(clicks)[1], 0.7))
    generator = SAMAutomaticMaskGenerator(
        model, points_per_side, 64, threshold, stability_score_thresh=0.5, **options
    )
    asked, backend = [], generator.predictor.backend
    decode = backend.decode_above

    def counting(embeddings, points, *others):
        asked.append(len(points))
        return decode(embeddings, points, *others)

    vars(backend)["decode_above"] = counting
    return [record["segmentation"] for record in generator.generate(image)], sum(asked)


def found_again(masks, others, least):
    """Share of the masks of which another has at least that IoU."""
    if not masks or not others:
        return 0.0
    flat = np.stack([mask[::2, ::2].ravel() for mask in others]).astype(np.float32)
    again = 0
    for mask in masks:
        pixels = mask[::2, ::2].ravel().astype(np.float32)
        intersection = flat @ pixels
        again += (intersection / (flat.sum(1) + pixels.sum() - intersection)).max() >= least
    return again / len(masks)


def main():
    model = SegmentAnythingModel.from_pretrained("sam_vit_t").eval()
    table = Table("switch", "photograph", "masks", "with it", "found again", "points asked")
    for name in PHOTOGRAPHS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = getattr(skimage.data, name)()
        masks, _ = everything(model, image)
        for switch, (options, least) in SWITCHES.items():
            others, asked = everything(model, image, **options)
            share = f"{found_again(masks, others, least):.1%}"
            table.add_row(switch, name, f"{len(masks)}", f"{len(others)}", share, f"{asked}")
    Console().print(table)


if __name__ == "__main__":
    main()
