"""What time, size and data do to `sam_vit_t`: short trainings from scratch, on small pictures.

    python -m examples.scenes.render --output scenes/train --count 4096
    python -m examples.scenes.render --output scenes/held_out --split held_out --count 256
    python -m benchmarks.scaling --scenes scenes/train --held-out scenes/held_out

Every training takes the same number of views of 256 pixels. In the part `scaling` the width or the
scenes change, in `shapes` the shape of an image encoder of about the same size, in `choices` one of
the choices of the training itself. They are measured on held-out scenes, and on scenes that all of
them saw, as pictures of that size. Each part takes up to half an hour on two cores; tables and
picture go to docs/training.md. `make bench` leaves it out, as it has no scenes.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.quality import scenes, summarise
from benchmarks.speeds import measure, page
from examples.scene_dataset import shards
from examples.training_start import EncoderShape
from segment_anything_transformers import SAMPredictor, SegmentAnythingModel
from segment_anything_transformers.evaluation.evaluation import evaluate

RESULTS = Path(__file__).parent / "results" / "scaling.json"
PICTURE = page.ROOT / "docs" / "images" / "scaling.png"
PAGE = page.ROOT / "docs" / "training.md"
SIZE = 256
MEASURED = 48
"""Number of scenes of each kind that a model is measured on."""
PROCESSES = 2
BATCH = 8
FIGURES = ("box, best", "click, best")
COLOURS = ("#f59e0b", "#1d4ed8", "#16a34a")
AS_IT_WAS = "as it was"


class Training(NamedTuple):
    """One of the trainings that are compared.

    Attributes:
        shape: Of the image encoder.
        shards: Number of the shards of scenes that it sees, None for all.
        choice: One of `CHOICES`.
    """

    shape: EncoderShape = EncoderShape()
    shards: int | None = None
    choice: str = AS_IT_WAS


CHOICES: dict[str, dict[str, Any]] = {
    AS_IT_WAS: {},
    f"{AS_IT_WAS}, with another seed": {"seed": 1},
    "random patches": {"random": ["patches"]},
    "random positions": {"random": ["positions"]},
    "no head that only training has": {"dense-weight": 0},
    "AdamW for the matrices too": {"optimizer": "adamw"},
}
"""What differs from the training of the weights in the package, as options of the training."""


PARTS = {
    "scaling": (
        Training(EncoderShape(width=96)),
        Training(),
        Training(EncoderShape(width=288)),
        Training(shards=4),
        Training(shards=1),
    ),
    "shapes": (
        Training(),
        Training(EncoderShape(width=256, blocks=4)),
        Training(EncoderShape(width=128, blocks=16)),
        Training(EncoderShape(window=4)),
    ),
    "choices": tuple(Training(choice=choice) for choice in CHOICES),
}
"""What each table of the page compares."""


def shards_of(folder: Path, training: Training) -> list[tuple[Path, Path]]:
    """The shards that a training sees."""
    return shards(folder)[: training.shards]


def train(training: Training, seen: list[tuple[Path, Path]], output: Path, steps: int) -> None:
    """Trains in two processes on some shards."""
    with TemporaryDirectory() as folder:
        for path in (path for pair in seen for path in pair):
            (Path(folder) / path.name).symlink_to(path.resolve())
        options = {
            "scenes": folder,
            "output": output,
            **training.shape._asdict(),
            "size": SIZE,
            "batch-size": BATCH,
            "steps": steps,
            "decay-steps": steps // 2,
            "warmup-steps": 50,
            "learning-rate": 1e-3,
            "corrections": 0.0,
            "save-every": steps,
            "precision": "bf16",
            **CHOICES[training.choice],
        }
        command = [sys.executable, "-m", "torch.distributed.run"]
        command += ["--nproc-per-node", str(PROCESSES), "-m", "examples.train_sam_vit_t"]
        for name, value in options.items():
            command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, cwd=page.ROOT, env=environment)


def measured(model: SegmentAnythingModel, folder: Path) -> dict[str, float]:
    """Mean IoU with a box and with a click on the first scenes of a folder."""
    samples = scenes(folder, MEASURED)
    evaluation = evaluate(SAMPredictor(model), samples, (1,), None)
    summary = summarise(samples, evaluation, {})["all"]
    return {name: summary[name] for name in FIGURES}


def result(training: Training, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one training."""
    seen = shards_of(options.scenes, training)
    with TemporaryDirectory() as output:
        train(training, seen, Path(output), options.steps)
        log = [json.loads(line) for line in (Path(output) / "log.jsonl").read_text().splitlines()]
        model = SegmentAnythingModel.from_pretrained(
            Path(output) / "model", input_size=(SIZE, SIZE)
        )
    return {
        **training.shape._asdict(),
        "shards": training.shards,
        "choice": training.choice,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "scenes": sum(len(np.load(images, mmap_mode="r")) for images, _ in seen),
        "held out": measured(model, options.held_out),
        "seen": measured(model, options.scenes),
        "log": [{name: line[name] for name in ("step", "seconds", "box_best")} for line in log],
    }


def table(part: str, results: dict[str, Any]) -> str:
    """A part of the page: a row for each of its trainings."""
    rows = [
        [
            *_differing(part, one).values(),
            f"{one['log'][-1]['seconds'] / 60:.1f}",
            *(" / ".join(f"{one[kind][n]:.2f}" for n in FIGURES) for kind in ("held out", "seen")),
        ]
        for one in results["trainings"]
    ]
    figures = " / ".join(FIGURES)
    heads = [*_differing(part, results["trainings"][0]), "minutes"]
    heads += [f"held out: {figures}", f"seen: {figures}"]
    parts = [
        f"{results['views']:,} views of {SIZE} pixels each. Measured with "
        f"`python -m benchmarks.scaling --parts {part}` on:",
        page.machine_lines(results["machine"]),
        page.table(heads, rows),
    ]
    return "\n\n".join(parts)


def _differing(part: str, one: dict[str, Any]) -> dict[str, str]:
    """What distinguishes a training from the others of its part, by the columns' heads."""
    if part == "choices":
        return {"training": one["choice"]}
    return {
        **{name: str(one[name]) for name in EncoderShape._fields},
        "parameters": f"{one['parameters'] / 1e6:.1f} million",
        "scenes": f"{one['scenes']:,}",
    }


def draw(results: dict[str, Any]) -> None:
    """Draws mean IoU on the trainings' own views by minutes, for each width with all scenes."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    complete = [one for one in results["trainings"] if one["shards"] is None]
    for one, colour in zip(complete, COLOURS, strict=True):
        minutes = [line["seconds"] / 60 for line in one["log"]]
        values = [line["box_best"] for line in one["log"]]
        axes.plot(minutes, values, "o-", color=colour, label=f"{one['width']} wide")
    axes.set(xlabel="minutes", ylabel="mean IoU with a box", ylim=(0, 1))
    axes.legend()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Trains, measures, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=Path, required=True, help="folder of scenes to learn from")
    parser.add_argument("--held-out", type=Path, required=True, help="folder of held-out scenes")
    parser.add_argument("--steps", type=int, default=240, help="of every training")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    options = parser.parse_args()
    for part in options.parts:
        results: dict[str, Any] = {
            "machine": measure.machine(PROCESSES),
            "views": options.steps * BATCH * PROCESSES,
            "trainings": [],
        }
        measured_before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for training in PARTS[part]:
            results["trainings"].append(result(training, options))
            print(table(part, results))
            RESULTS.write_text(json.dumps({**measured_before, part: results}, indent=2) + "\n")
        page.write_part(part, table(part, results), PAGE)
        if part == "scaling":
            draw(results)


if __name__ == "__main__":
    main()
