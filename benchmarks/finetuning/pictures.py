"""A loss curve, and pictures beside each other; needs matplotlib."""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage


def plot_losses(log: list[dict[str, float]], path: Path) -> None:
    """The losses that `finetune` logged, and a smoothed line in front of them."""
    steps, losses = zip(*((e["step"], e["loss"]) for e in log if "loss" in e), strict=True)
    figure = Figure(figsize=(6.4, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="#bfdbfe")
    axes.plot(steps, ndimage.gaussian_filter1d(losses, len(losses) / 25), color="#1d4ed8")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    figure.savefig(path, dpi=110)


def show_in_rows(columns: dict[str, list[Image.Image]], path: Path) -> None:
    """Pictures side by side under the titles of their columns."""
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(3 * len(columns), 3 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for column, (title, pictures) in enumerate(columns.items()):
        grid[0, column].set_title(title)
        for row, picture in enumerate(pictures):
            grid[row, column].imshow(picture)
            grid[row, column].axis("off")
    figure.savefig(path, dpi=90)
