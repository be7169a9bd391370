"""Threads that share a generator, a predictor and a model: whether every answer is the right one.

    python -m benchmarks.threads                            a minute
    python -m benchmarks.threads --seconds 600 --threads 16

Each thread has a photograph of its own, whose answers are known beforehand. It asks, in turn, the
one generator that all share, a predictor of its own, and the one predictor that all share, which
may refuse, as another thread has set its image meanwhile. With the model in the package, at 256 x
256 pixels so that answers come fast. Ends with 1 where one is wrong or anything else is raised.
"""

import argparse
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from benchmarks.speeds import contestants
from segment_anything_transformers import (
    SAMAutomaticMaskGenerator,
    SAMPredictor,
    SegmentAnythingModel,
)

POINTS = [[60.0, 40.0]]
OPTIONS: dict[str, Any] = {
    "points_per_side": 3,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "output_mode": "coco_rle",
}


def asked(predictor: SAMPredictor, image: np.ndarray) -> list[Any]:
    """What a predictor says of an image: masks, scores and logits as bytes."""
    predictor.set_image(image)
    time.sleep(0.001)  # so that another thread comes in between
    return [part.tobytes() for part in predictor(points=np.array(POINTS))]


def hammered(
    model: Any, images: list[np.ndarray], seconds: float, threads: int = 4
) -> dict[str, Counter[str]]:
    """How often each way to ask was right, wrong, refused, or ended in an error.

    Args:
        model: The model that all share.
        images: Thread i asks about image i, modulo their number.
        seconds: How long.
        threads: How many.
    """
    generator, shared = SAMAutomaticMaskGenerator(model, **OPTIONS), SAMPredictor(model)
    own = [SAMPredictor(model) for _ in range(threads)]
    ways: dict[str, Callable[[int, np.ndarray], Any]] = {
        "one generator": lambda number, image: generator.generate(image),
        "a predictor each": lambda number, image: asked(own[number], image),
        "one predictor": lambda number, image: asked(shared, image),
    }
    right = [{way: ask(0, image) for way, ask in ways.items()} for image in images]
    counts: dict[str, Counter[str]] = {way: Counter() for way in ways}
    barrier, end = threading.Barrier(threads), time.monotonic() + seconds

    def work(number: int) -> None:
        at = number % len(images)
        barrier.wait()
        while time.monotonic() < end:
            for way, ask in ways.items():
                outcome = _outcome(partial(ask, number, images[at]), right[at][way])
                with lock:
                    counts[way][outcome] += 1

    lock = threading.Lock()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))
    return counts


def _outcome(ask: Callable[[], Any], right: Any) -> str:
    try:
        return "right" if ask() == right else "wrong"
    except RuntimeError as error:
        is_refusal = "SAMPredictor for each thread" in str(error)
        return "refused" if is_refusal else f"RuntimeError: {error}"
    except Exception as error:  # whatever it is, it is counted
        return f"{type(error).__name__}: {error}"


def is_sound(counts: dict[str, Counter[str]]) -> bool:
    """Whether every answer was right, and only the predictor that is shared refused."""
    allowed = {"one predictor": {"right", "refused"}}
    return all(
        counted["right"] and set(counted) <= allowed.get(way, {"right"})
        for way, counted in counts.items()
    )


def main() -> int:
    """Hammers, prints the counts, and says whether all was sound."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=4)
    args = parser.parse_args()
    sizes = [(240, 160), (160, 240), (300, 200), (200, 200)]
    images = [np.array(contestants.photograph(*size)) for size in sizes]
    model = SegmentAnythingModel.from_pretrained("sam_vit_t", input_size=(256, 256)).eval()
    counts = hammered(model, images, args.seconds, args.threads)
    for way, counted in counts.items():
        print(way, dict(counted))
    return 0 if is_sound(counts) else 1


if __name__ == "__main__":
    raise SystemExit(main())
