"""The command `segment-anything evaluate`."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from ..data.pictures import png
from ..prediction.whole_files import whole_file
from .files import UsageError, make_folder, usage_errors
from .models import load_model
from .samples import (
    add_data_command,
    faults_asked,
    image_bar,
    read_samples,
    report_skipped,
    whole_number,
)

_EVALUATE = """\
Measures a model on images with true masks: after clicks at the centre of the largest error, and
with the true masks' boxes; with --everything also how much everything mode finds.
"""

_EXAMPLES = """\
examples:
  segment-anything evaluate cells
  segment-anything evaluate cells --model my-sam --everything
  segment-anything evaluate instances_val2017.json --images val2017 --max-images 100

DATA is a folder with images/ and masks/ of the same names (a mask is a picture of one object, or
of instance ids; or a folder of pictures), a JSON file of COCO annotations, or a data set of the
Hub with the columns image and mask.

writes:
  evaluation.json   each figure for each object, and the means
  worst.png         the worst objects: the truth in green, the mask for its box in blue

"""


def add_evaluate(commands: Any, exit_codes: str) -> argparse.ArgumentParser:
    """Adds the subcommand; the options on the model are left to the caller."""
    parser = add_data_command(
        commands,
        "evaluate",
        description=_EVALUATE,
        epilog=_EXAMPLES + exit_codes,
        help="measure a model on your images and masks",
    )
    parser.add_argument(
        "--max-images", type=whole_number(1), metavar="N", help="take the first N images"
    )
    parser.add_argument(
        "--clicks",
        default="1,2,3,5,8",
        metavar="N,N",
        help="numbers of clicks to measure after (default: %(default)s)",
    )
    parser.add_argument(
        "--everything", action="store_true", help="measure everything mode too, which takes longer"
    )
    parser.add_argument(
        "--zoom",
        action="store_true",
        help="look at each object more closely, in a part of the image; everything mode does not",
    )
    parser.add_argument(
        "--points-per-side",
        type=int,
        default=32,
        metavar="N",
        help="of everything mode (default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--output", default="evaluation", metavar="FOLDER", help="default: %(default)s"
    )
    return parser


def run_evaluate(args: argparse.Namespace) -> int:
    """Measures, writes and prints; returns the exit code.

    Raises:
        UsageError: The data or an option is faulty.
    """
    from ..evaluation.evaluation import evaluate
    from ..evaluation.report import draw_worst, quality_table

    clicks = _numbers(args.clicks)
    samples = read_samples(args)[: args.max_images]
    folder = make_folder(args.output)
    model = load_model(args.model, args.framework, args.device, args.dtype)
    everything = {"points_per_side": args.points_per_side} if args.everything else None
    progress = image_bar(args, len(samples))
    with usage_errors():
        result = evaluate(
            model, samples, clicks, everything, faults_asked(args), progress, args.zoom
        )
    result.save(folder / "evaluation.json", model=args.model, data=args.data)
    with whole_file(folder / "worst.png") as file:
        file.write(png(draw_worst(result, samples)))
    if not args.quiet:
        Console().print(quality_table(result, args.model))
        print(f"written to {folder}/")
    return report_skipped(result.faults)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--clicks: expected whole numbers such as 1,2,3, got {text!r}") from error
