"""What more training gave: a picture and a table for docs/training.md.

    python -m docs.make_training_curve run/log.jsonl run/large/log.jsonl

The logs are those of `examples/train_sam_vit_t.py`, one run after another; needs matplotlib. The
table is of what `benchmarks/quality.py` measured of weights that were ready to be shipped.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

from benchmarks.quality import SIZES
from benchmarks.speeds import page

FILE = Path(__file__).parent / "images" / "training-curve.png"
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
WEIGHTS = {
    "quality_sam_vit_t_second.json": "23,000 views of 256 and 512 pixels",
    "quality_sam_vit_t_third.json": "50,000 views, 1,100 of 1024 pixels",
    "quality_sam_vit_t_fourth.json": "60,000 views, 2,400 of 1024 pixels; then corrections",
    "quality_sam_vit_t_fifth.json": "63,000 views, 5,000 of 1024 pixels; then the choice's cost",
    "quality_sam_vit_t.json": "68,000 views, 6,300 of 1024 pixels; then nested masks",
}
FIGURES = ("box, best", "click, best", "5 clicks")
CURVES = {
    "box_best": ("a box", "#1d4ed8"),
    "click_best": ("one click", "#16a34a"),
}


def hours_of(lines: list[dict[str, float]]) -> np.ndarray:
    """Hours since the start of the first run; a run that goes on counts its own from 0."""
    seconds = np.array([line["seconds"] for line in lines])
    passed = np.diff(seconds, prepend=0.0)
    return np.where(passed > 0, passed, seconds).cumsum() / 3600


def table() -> str:
    """Mean IoU of held-out objects with a box, a click and five clicks, by size."""
    rows = []
    for file, training in WEIGHTS.items():
        scenes = json.loads((RESULTS / file).read_text())["held-out scenes"]
        figures = [
            [f"{scenes[size][name]:.2f}" if name in scenes[size] else "?" for name in FIGURES]
            for size in SIZES
        ]
        rows.append([training, *(" / ".join(cells) for cells in figures)])
    return page.table([" / ".join(FIGURES), *SIZES], rows)


def draw(logs: list[Path]) -> None:
    """Draws mean IoU on the training's own views, by hours."""
    lines = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, (label, colour) in CURVES.items():
        values = np.array([line[name] for line in lines])
        smooth = ndimage.gaussian_filter1d(values, 3, mode="nearest")
        axes.plot(hours_of(lines), values, color=colour, alpha=0.25)
        axes.plot(hours_of(lines), smooth, color=colour, label=label)
    axes.set(xlabel="hours", ylabel="mean IoU of the best by own score", ylim=(0, 1))
    axes.legend()
    figure.savefig(FILE, dpi=110)


def main() -> None:
    """Writes the table, and draws the picture if there are logs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("logs", type=Path, nargs="*", help="without any, the picture stays")
    options = parser.parse_args()
    page.write_part("weights", table(), page.ROOT / "docs" / "training.md")
    if options.logs:
        draw(options.logs)


if __name__ == "__main__":
    main()
