"""Makes the picture of a training's progress: `python docs/make_training_curve.py run/log.jsonl`.

The log is that of `examples/train_sam_vit_t.py`; needs matplotlib.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import ndimage

FILE = Path(__file__).parent / "images" / "training-curve.png"
CURVES = {
    "box_best": ("a box", "#1d4ed8"),
    "click_best": ("one click", "#16a34a"),
}


def hours_of(lines: list[dict[str, float]]) -> np.ndarray:
    """Hours since the start of the first run; a run that goes on counts its own from 0."""
    seconds = np.array([line["seconds"] for line in lines])
    passed = np.diff(seconds, prepend=0.0)
    return np.where(passed > 0, passed, seconds).cumsum() / 3600


def main() -> None:
    """Draws mean IoU on the training's own views, by hours."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("log", type=Path)
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.log.read_text().splitlines()]
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, (label, colour) in CURVES.items():
        values = np.array([line[name] for line in lines])
        smooth = ndimage.gaussian_filter1d(values, 3, mode="nearest")
        axes.plot(hours_of(lines), values, color=colour, alpha=0.25)
        axes.plot(hours_of(lines), smooth, color=colour, label=label)
    axes.set(xlabel="hours", ylabel="mean IoU of the best by own score", ylim=(0, 1))
    axes.legend()
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
