"""How time and memory grow with points, pixels, images and threads: tables and plots.

    python -m benchmarks.growth                             the part of docs/benchmarks.md
    python -m benchmarks.growth --only points --values 64 256   on the screen alone

Everything in a photograph with the model in the package. Each figure comes from a process of its
own; seconds are the better of two runs. Linux only.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from benchmarks.speeds import calls, contestants, measure, page

MODULE = "benchmarks.growth"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "growth.png"
SIZES = {600 * 400: (600, 400), 1200 * 800: (1200, 800), 2400 * 1600: (2400, 1600)}
SIZES[4000 * 3000] = (4000, 3000)


@dataclass(frozen=True)
class Axis:
    """What grows.

    Attributes:
        title: What the values count.
        values: Its values, rising.
        make: Makes the call for a value.
        is_work: Whether a value is so much work, rather than so much help.
    """

    title: str
    values: Sequence[int]
    make: Callable[[int], measure.Call]
    is_work: bool = True


def batch(count: int) -> measure.Call:
    """Some images of 900 x 600, one after the other, 64 points in each."""
    generator, image = calls.generator("sam_vit_t", 8), contestants.photograph(900, 600)
    return lambda: [len(records) for records in generator.generate_batch([image] * count)]


AXES = {
    "points": Axis(
        "points, in 1800 x 1200 pixels",
        (64, 256, 1024, 4096),
        lambda points: calls.our_generator("sam_vit_t", (1800, 1200), round(points**0.5)),
    ),
    "pixels": Axis(
        "pixels, with 256 points",
        [*SIZES],
        lambda pixels: calls.our_generator("sam_vit_t", SIZES[pixels], 16),
    ),
    "images": Axis("images of 900 x 600, with 64 points each", (1, 2, 4, 8), batch),
    "threads": Axis(
        "threads, with 256 points in 1800 x 1200 pixels",
        range(1, 1 + (psutil.cpu_count(logical=False) or 1)),
        lambda _: calls.our_generator("sam_vit_t", (1800, 1200), 16),
        is_work=False,
    ),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=AXES, help="one of them, on the screen alone")
    parser.add_argument("--values", nargs="+", type=int, help="instead of its own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


@torch.no_grad()
def measured(name: str, value: int) -> dict[str, float]:
    """Seconds and memory for one value, in this process."""
    call = AXES[name].make(value)
    figures = measure.time_and_memory(call)
    again = measure.best_times({"again": call}, 1)["again"]
    return {**figures, "seconds": min(figures["seconds"], again)}


def along(name: str, values: Sequence[int], threads: int) -> dict[int, dict[str, float]]:
    """The figures of all values."""
    results = {}
    for value in values:
        command = ["--child", "--only", name, "--values", str(value)]
        count = threads if AXES[name].is_work else value
        results[value] = measure.in_process(MODULE, command, count)
    return results


def table(name: str, results: dict[int, dict[str, float]]) -> str:
    """The figures of one axis, and how they compare with growth in proportion."""
    axis, first = AXES[name], next(iter(results))
    heads = [axis.title, "seconds", "of those in proportion", "peak memory above the weights"]
    rows = []
    for value, figures in results.items():
        share = figures["seconds"] / (results[first]["seconds"] * in_proportion(axis, first, value))
        memory = f"{figures['above'] / 1e9:.2f} GB"
        rows.append([f"{value:,}", f"{figures['seconds']:.3g}", f"{share:.2f}", memory])
    return page.table(heads, rows)


def in_proportion(axis: Axis, first: int, value: int) -> float:
    return value / first if axis.is_work else first / value


def draw(results: dict[str, dict[int, dict[str, float]]], file: Path) -> None:
    """Time above, memory below, a column for each axis; dashed is growth in proportion."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(results), 5.6), layout="constrained")
    rows = figure.subplots(2, len(results), squeeze=False)
    for column, (name, of_axis) in zip(rows.T, results.items(), strict=True):
        axis, values = AXES[name], [*of_axis]
        seconds = [figures["seconds"] for figures in of_axis.values()]
        gigabytes = [figures["above"] / 1e9 for figures in of_axis.values()]
        dashed = [seconds[0] * in_proportion(axis, values[0], value) for value in values]
        column[0].plot(values, dashed, "--", color="#9ca3af")
        column[0].plot(values, seconds, "o-", color="#2563eb")
        column[1].plot(values, gigabytes, "o-", color="#f97316")
        column[0].set_title(name)
        column[1].set_xlabel(axis.title, fontsize="small")
        for plot in column:
            plot.set_ylim(bottom=0)
            plot.set_xlim(left=0)
            plot.grid(alpha=0.3)
    rows[0, 0].set_ylabel("seconds")
    rows[1, 0].set_ylabel("GB above the weights")
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=110)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measured(options.only, options.values[0])))
        return
    if options.only:
        values = options.values or AXES[options.only].values
        print(table(options.only, along(options.only, values, options.threads)))
        return
    results = {name: along(name, axis.values, options.threads) for name, axis in AXES.items()}
    draw(results, PICTURE)
    tables = [table(name, of_axis) for name, of_axis in results.items()]
    plots = f"![Time and memory against {', '.join(results)}](images/{PICTURE.name})"
    machine = page.machine_lines(measure.machine(options.threads))
    page.write_part("growth", "\n\n".join([machine, plots, *tables]))


if __name__ == "__main__":
    main()
