"""What the switches that are off by default cost in quality, and save in work.

    python -m benchmarks.switches

Everything in photographs of scikit-image with the model in the package, at thresholds that let
three masks in ten pass. `found again` is the share of the masks found without the switch of which
one found with it has an IoU of at least 0.9 (0.98 for a precision or a compiled encoder).
"""

import argparse
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import skimage.data
import torch
from PIL import Image

from benchmarks.speeds import measure, page
from benchmarks.speeds.calls import thresholds
from segment_anything_transformers import SAMAutomaticMaskGenerator, SegmentAnythingModel

PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def compiled(model: Any) -> Any:
    """A copy whose encoder PyTorch compiles in the first call."""
    model = deepcopy(model)
    model.image_encoder.compile()
    return model


class Switch(NamedTuple):
    options: dict[str, Any]  # of the generator
    least_iou: float  # from which a mask counts as found again
    prepare: Callable[[Any], Any] = lambda model: model


SWITCHES = {
    "skip_covered_points=True": Switch({"skip_covered_points": True}, 0.9),
    'dtype="bfloat16"': Switch({"dtype": "bfloat16"}, 0.98),
    'dtype="float16"': Switch({"dtype": "float16"}, 0.98),
    'dtype="int8"': Switch({"dtype": "int8"}, 0.98),
    "model.image_encoder.compile()": Switch({}, 0.98, compiled),
}


class Found(NamedTuple):
    masks: list[np.ndarray]
    points: int  # that the model was asked about
    seconds: float


def everything(model, image, points_per_side, options) -> Found:
    """What is found in an image; the time is that of a second run."""
    generator = SAMAutomaticMaskGenerator(model, points_per_side, **options)
    asked: list[int] = []
    backend: Any = generator.predictor.backend
    decode = backend.decode_above

    def counting(embeddings, points, *others):
        asked.append(len(points))
        return decode(embeddings, points, *others)

    vars(backend)["decode_above"] = counting
    generator.generate(image)
    asked.clear()
    start = time.perf_counter()
    records = generator.generate(image)
    seconds = time.perf_counter() - start
    return Found([record["segmentation"] for record in records], sum(asked), seconds)


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


def photograph(name: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-image, on where its files lie
        return Image.fromarray(getattr(skimage.data, name)())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--photographs", nargs="+", default=PHOTOGRAPHS)
    parser.add_argument("--screen", action="store_true", help="leave docs/benchmarks.md as it is")
    options = parser.parse_args()
    model = SegmentAnythingModel.from_pretrained("sam_vit_t").eval()
    models = {name: switch.prepare(model) for name, switch in SWITCHES.items()}
    rows = []
    for name in options.photographs:
        image = photograph(name)
        limits = thresholds(model, image)
        plain = everything(model, image, options.points_per_side, limits)
        for title, (switched, least, _) in SWITCHES.items():
            found = everything(
                models[title], image, options.points_per_side, {**limits, **switched}
            )
            share = f"{found_again(plain.masks, found.masks, least):.1%}"
            counts = [f"{len(plain.masks)}", f"{len(found.masks)}", share]
            work = [f"{found.points / plain.points:.2f}", f"{found.seconds / plain.seconds:.2f}"]
            rows.append([f"`{title}`", name, *counts, *work])
    heads = ["switch", "photograph", "masks", "with it", "found again", "points", "time"]
    table = page.table(heads, sorted(rows))
    print(table)
    if not options.screen:
        machine = page.machine_lines(measure.machine(torch.get_num_threads()))
        page.write_part("switches", "\n\n".join([machine, table]))


if __name__ == "__main__":
    main()
