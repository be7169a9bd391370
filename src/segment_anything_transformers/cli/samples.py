"""Images with true masks on the command line: which ones, and what happens to faulty ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from .files import usage_errors

if TYPE_CHECKING:
    from ..data.samples import Faults, Samples


def add_data_command(commands: Any, name: str, **texts: str) -> argparse.ArgumentParser:
    """Adds a subcommand on images with true masks, with the options that say which there are.

    Args:
        commands: The subparsers of the command.
        name: The subcommand's name.
        texts: Its `description`, `epilog` and `help`.
    """
    parser: argparse.ArgumentParser = commands.add_parser(name, **texts)
    parser.add_argument("data", metavar="DATA", help="folder, COCO annotations, or Hub data set")
    parser.add_argument("--images", metavar="FOLDER", help="images of the COCO annotations")
    parser.add_argument(
        "--ignore-value", type=int, metavar="N", help="pixels of masks with this value are unknown"
    )
    add_bands_option(parser)
    parser.add_argument("--split", default="train", help="of a Hub data set (default: %(default)s)")
    parser.add_argument(
        "--skip-faulty",
        action="store_true",
        help="leave out images that cannot be read or have no sound mask, and say which",
    )
    add_quiet_option(parser)
    return parser


def whole_number(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """Reads a whole number from a command line, which must lie in a range."""
    wanted = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = lowest - 1
        if number < lowest or (highest is not None and number > highest):
            raise argparse.ArgumentTypeError(f"expected a whole number {wanted}, got {text!r}")
        return number

    return read


def add_bands_option(parser: Any) -> None:
    """Adds the option that chooses bands of images with many."""
    parser.add_argument(
        "--bands",
        type=_bands,
        metavar="N,N,N",
        help="bands of the images, counted from 1, to be seen as red, green and blue",
    )


def _bands(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected numbers from 1 such as 4,3,2, got {text!r}")
    return tuple(map(int, parts))


def add_quiet_option(parser: Any) -> None:
    """Adds the option that every command which works on images has."""
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="say nothing but what went wrong"
    )


def image_bar(args: argparse.Namespace, total: int | None = None) -> Callable[[Any], Any]:
    """Passes things on, one an image, and shows a bar of them unless the command is quiet."""
    return partial(tqdm, total=total, unit="image", disable=args.quiet)


def read_samples(
    args: argparse.Namespace,
    data: str | None = None,
    images: str | None = None,
    split: str | None = None,
) -> Samples:
    """The samples that the options of `add_data_command` mean.

    Args:
        args: What was parsed.
        data: Read this instead of the command's DATA.
        images: And its images from this folder, if it is COCO annotations.
        split: And this part of it, if it is a Hub data set; by default the command's.

    Raises:
        UsageError: They cannot be had.
    """
    from ..data.annotations import load_samples

    if data is None:
        data, images = args.data, args.images
    with usage_errors():
        return load_samples(data, images, args.ignore_value, split or args.split, args.bands)


def faults_asked(args: argparse.Namespace) -> Faults:
    """What was asked to be done with faulty samples."""
    return "skip" if args.skip_faulty else "refuse"


def report_skipped(faults: list[str]) -> int:
    """Names the samples that were skipped; returns the exit code."""
    for message in faults:
        tqdm.write(f"segment-anything: skipped {message}", file=sys.stderr)
    return 1 if faults else 0
