"""The command `segment-anything`."""

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tqdm.auto import tqdm

from .. import demo
from ..data.files import image_size, read_mask, read_picture, read_pixels
from ..model.pictures import RGB
from ..model.prompt_rules import check_boxes, check_points
from .arguments import build_parser
from .evaluate import run_evaluate
from .files import (
    UsageError,
    check_names_differ,
    expand_images,
    make_folder,
    one_line,
    usage_errors,
    write_results,
)
from .finetune import run_finetune
from .models import compile_encoder, load_model, print_models

DEMO_IMAGE = "coffee.jpg"
DEMO_POINT = (372.0, 285.0)

Records = list[dict[str, Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the command line says.

    Args:
        arguments: The command line; by default that of the process.

    Returns:
        The exit code: 0 all done, 1 some images failed, 2 nothing done.
    """
    args = build_parser().parse_args(arguments)
    # Transformers' remark that PyTorch is missing; where it matters, the command says so itself.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's remarks on the processor
    commands = {
        "predict": _predict,
        "generate": _generate,
        "models": lambda _: print_models(),
        "demo": _demo,
        "evaluate": run_evaluate,
        "finetune": run_finetune,
    }
    # Remarks on large and damaged files: the command says itself what it does with them.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names that the terminal cannot show must not end it
            stream.reconfigure(errors="backslashreplace")
    try:
        return commands[args.command](args)
    except UsageError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130  # what a shell expects of a program that was interrupted


def _complain(error: object) -> None:
    tqdm.write(f"segment-anything: {error}", file=sys.stderr)


def _predict(args: argparse.Namespace) -> int:
    if not (args.points or args.boxes or args.mask):
        raise UsageError("predict needs to know which object: --point, --box or --mask")
    with usage_errors():
        rough_mask = read_mask(args.mask) if args.mask else None
    prompts = _prompts(args)

    def check(size: tuple[int, int]) -> None:
        _check_inside(size, prompts)
        if rough_mask is not None and rough_mask.shape != size[::-1]:
            height, width = rough_mask.shape
            raise UsageError(
                f"the mask has {width} x {height} pixels, the image {size[0]} x {size[1]}"
            )

    def segmenter(model: Any) -> Callable[[Any], Records]:
        return lambda image: _one_object(
            model, image, prompts, rough_mask, args.multimask, args.zoom
        )

    return _segment_images(args, check, segmenter, {"prompts": prompts}, n_drawn=1)


def _prompts(args: argparse.Namespace) -> dict[str, Any]:
    """The prompts as the JSON shows them, without those that were not given."""
    prompts: dict[str, Any] = {}
    if args.points or args.negatives:
        prompts["points"] = [list(point) for point in args.points + args.negatives]
        prompts["labels"] = [1] * len(args.points) + [0] * len(args.negatives)
    if args.boxes:
        prompts["boxes"] = [list(box) for box in args.boxes]
    if args.mask:
        prompts["mask"] = args.mask
    return prompts


def _check_inside(size: tuple[int, int], prompts: dict[str, Any]) -> None:
    """Refuses prompts that cannot be meant in an image of this width and height."""
    try:
        check_points("--point", _rows(prompts, "points", 2), size[::-1])
        check_boxes("--box", _rows(prompts, "boxes", 4), size[::-1])
    except ValueError as error:
        raise UsageError(one_line(error)) from error


def _rows(prompts: dict[str, Any], name: str, columns: int) -> np.ndarray:
    return np.array(prompts.get(name, []), float).reshape(-1, columns)


def _one_object(
    model: Any,
    image: Any,
    prompts: dict[str, Any],
    rough_mask: np.ndarray | None,
    keep_all: bool,
    zoom: bool,
) -> Records:
    """Records of the masks that the prompts mean, the best first."""
    from ..prediction.object_masks import Look, mask_records, segment_closely, segment_object
    from ..prediction.predictor import SAMPredictor
    from ..prediction.prompts import sure_logits

    predictor = SAMPredictor(model)
    predictor.set_image(image)
    given: dict[str, Any] = {
        name: np.array(values) for name, values in prompts.items() if name != "mask"
    }

    def with_mask() -> dict[str, Any]:
        if rough_mask is None:
            return given
        return {**given, "masks": predictor.preprocess_masks(sure_logits(rough_mask)[None])}

    if not zoom:
        return mask_records(*segment_object(predictor, with_mask(), keep_all))
    masks, scores, look = segment_closely(predictor, with_mask, keep_all)
    if look is not Look.CLOSE:
        _complain(f"--zoom keeps the masks of {look.value}")
    return mask_records(masks, scores)


def _generate(args: argparse.Namespace) -> int:
    options: dict[str, Any] = {}
    args.images = expand_images(args.images, args.recursive)
    show_points = len(args.images) == 1 and not args.quiet

    def segmenter(model: Any) -> Callable[[Any], Records]:
        from ..prediction.mask_generator import SAMAutomaticMaskGenerator, usual_options

        if args.compile:
            compile_encoder(model)
        options.update(usual_options(model.config))
        options.update((name, asked) for name, asked in vars(args).items() if name in options)
        generator = SAMAutomaticMaskGenerator(model, **options, output_mode="coco_rle")
        return lambda image: generator.generate(image, progress=show_points)

    return _segment_images(args, lambda size: None, segmenter, {"options": options})


def _demo(args: argparse.Namespace) -> int:
    if args.serve:
        return _serve(args)
    with as_file(files(demo) / DEMO_IMAGE) as bundled:
        args.images = [args.image or str(bundled)]
        if not args.points:
            with usage_errors():
                width, height = image_size(args.images[0])
            args.points = [(width // 2, height // 2) if args.image else DEMO_POINT]
        args.negatives, args.boxes, args.mask = [], [], None
        args.multimask = args.zoom = args.recursive = False
        args.bands = None
        return _predict(args)


def _serve(args: argparse.Namespace) -> int:
    """Serves the page where people click, until it is interrupted."""
    if args.points:
        raise UsageError("with --serve, points are clicked on the page; leave --point out")
    if find_spec("gradio") is None:
        raise UsageError("--serve needs gradio: pip install 'segment-anything-transformers[demo]'")
    with as_file(files(demo) / DEMO_IMAGE) as bundled:
        with usage_errors():
            image = read_picture(args.image or str(bundled))
    model = load_model(args.model, args.framework, args.device, args.dtype)

    from ..demo.app import build_app, start

    app = build_app(model, image)
    with usage_errors():
        url = start(app, args.host, args.port)
    print(f"open {url} in a browser; Ctrl+C ends it", flush=True)
    app.block_thread()
    return 0


def _segment_images(
    args: argparse.Namespace,
    check: Callable[[tuple[int, int]], None],
    segmenter: Callable[[Any], Callable[[Any], Records]],
    about: dict[str, Any],
    n_drawn: int | None = None,
) -> int:
    """Segments and writes image after image, past those that fail; returns the exit code.

    Args:
        args: The command line.
        check: Raises UsageError for an image, by its width and height, that does not fit.
        segmenter: Makes, of the loaded model, what makes records of an image.
        about: What the JSON tells besides the model and the masks.
        n_drawn: See `write_results`.
    """
    args.images = expand_images(args.images, args.recursive)
    check_names_differ(args.images)
    sound = [path for path in args.images if _passes(check, path)]
    if not sound:
        return 2  # before the model is loaded, which takes a while
    folder = make_folder(args.output)
    segment = _prepared(segmenter, args)
    about = {"model": args.model, **about}
    summary = _summary()
    with _writers(args, folder) as writers:
        for path in tqdm(sound, unit="image", disable=args.quiet or len(sound) == 1):
            started = time.perf_counter()
            try:
                with usage_errors():
                    image, seen = _read_image(path, args.bands)
                records = segment(image)
                write_results(folder, path, seen, records, about, args.json_only, n_drawn)
                labelled = [{**record, "label": args.label} for record in records]
                for writer in writers:
                    writer.add(path, (seen.height, seen.width), labelled)
            except UsageError as error:
                _complain(error)
            # a full disk; an image that the model cannot take; weights that answer with NaN
            except (OSError, ValueError, FloatingPointError) as error:
                _complain(f"{path}: {one_line(error)}")
            else:
                summary.add_row(*_summary_row(path, records, time.perf_counter() - started))
    if summary.row_count and not args.quiet:
        Console().print(summary)
        print(f"written to {folder}/")
    if summary.row_count == 0:
        return 2
    return 0 if summary.row_count == len(args.images) else 1


@contextmanager
def _writers(args: argparse.Namespace, folder: Path) -> Iterator[list[Any]]:
    """What writes the formats that were asked for; their files of the run are there at the end."""
    from ..data.writers import open_writer

    with ExitStack() as stack:
        with usage_errors():
            made = [
                stack.enter_context(open_writer(format, folder, exact=args.exact))
                for format in dict.fromkeys(args.format or ())
            ]
        yield made


def _read_image(path: str, bands: Sequence[int] | None) -> tuple[Any, Image.Image]:
    """An image as the model takes it, and the RGB picture to draw on.

    Images of more bands than three are for models with as many channels; others are refused.
    """
    pixels = read_pixels(path, bands)
    if pixels.shape[-1] == RGB:
        picture = Image.fromarray(pixels)
        return picture, picture
    shown = pixels[..., :RGB] if pixels.shape[-1] > RGB else pixels[..., 0]
    return pixels, Image.fromarray(np.ascontiguousarray(shown)).convert("RGB")


def _passes(check: Callable[[tuple[int, int]], None], path: str) -> bool:
    """Whether the file is an image that passes the check; says why not."""
    try:
        size = image_size(path)
    except (OSError, ValueError) as error:
        _complain(one_line(error))
        return False
    try:
        check(size)
    except UsageError as error:
        _complain(f"{path}: {error}")
        return False
    return True


def _prepared(segmenter: Callable[[Any], Any], args: argparse.Namespace) -> Any:
    """What the segmenter makes of the model that the command line names."""
    model = load_model(args.model, args.framework, args.device, args.dtype)
    with usage_errors():
        return segmenter(model)


def _summary() -> Table:
    """A table without rows for what was done to each image."""
    table = Table("image")
    for heading in ("masks", "best score", "seconds"):
        table.add_column(heading, justify="right")
    return table


def _summary_row(path: str, records: Records, seconds: float) -> tuple[str, ...]:
    best = max((record["predicted_iou"] for record in records), default=None)
    score = "-" if best is None else f"{best:.2f}"
    return escape(Path(path).name), str(len(records)), score, f"{seconds:.1f}"
