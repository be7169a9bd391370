"""What the command `segment-anything` can be told, and how a person learns of it."""

import argparse
import math
from typing import Any, NoReturn

from .. import __version__
from ..prediction.generator_options import GENERATOR_OPTIONS
from .evaluate import add_evaluate
from .finetune import add_finetune
from .samples import add_bands_option, add_quiet_option, whole_number

_GENERAL = """\
Outlines objects in photographs with Segment Anything.

  predict    the object that you point at, with clicks, boxes or a rough mask
  generate   everything in a picture
  evaluate   how good a model is on your images and masks
  finetune   a model that has learnt from your images and masks
  models     the models that are known by name
  demo       a first try: the model and the photograph come with the package

`segment-anything COMMAND --help` tells more, with examples.
"""

_EXIT_CODES = """\
exit code:
  0  everything was done
  1  some images could not be read or did not fit; the others were done
  2  nothing was done, and one line on stderr tells why
"""

_PREDICT = """\
Outlines one object in each image. All clicks, boxes and masks together describe that object, in
pixels of the image: x to the right, y downwards, from the upper left corner.
"""

_PREDICT_EXAMPLES = """\
examples:
  segment-anything predict dog.jpg --point 320,240
  segment-anything predict dog.jpg --point 320,240 --negative 80,400 --multimask
  segment-anything predict dog.jpg --box 100,80,500,420 --output masks
  segment-anything predict *.jpg --box 0,0,640,480 --model facebook/sam-vit-base --device cuda
  segment-anything predict dog.jpg --point 90,60 --mask segmented/dog_mask_00.png

writes, for dog.jpg:
  dog_mask_00.png   the mask, white on black, of the image's size (01, 02 with --multimask)
  dog_overlay.png   the image with the best mask and the prompts drawn on it
  dog.json          scores, boxes, areas, masks as COCO run lengths, the model, the prompts

"""

_GENERATE = """\
Outlines everything in each image, by clicking on a grid of points and keeping the good masks.
"""

_GENERATE_EXAMPLES = """\
examples:
  segment-anything generate street.jpg
  segment-anything generate street.jpg --points-per-side 16 --pred-iou-thresh 0.7
  segment-anything generate street.jpg --crop-n-layers 1 --min-mask-region-area 100
  segment-anything generate street.jpg --crop-n-layers 1 --merge-crop-seams
  segment-anything generate photos --recursive --format coco --format yolo
  segment-anything generate *.jpg --json-only --output annotations --skip-covered-points

writes, for street.jpg:
  street_mask_00.png, ...   one mask each, white on black, the best first
  street_overlay.png        the image with all masks on it, the smaller ones on top
  street.json               scores, boxes, areas, masks as COCO run lengths, the model

"""

_FORMATS = """\
--format writes, for images a.jpg, b.jpg, ...:
  coco      coco.json, of the whole run: polygons, or run lengths with --exact
  yolo      labels/a.txt, ... and data.yaml, for ultralytics
  labelme   labelme/a.json, ...
  geojson   geojson/a.geojson, ... in pixels, for QGIS and QuPath
  map       masks/a.png, ... of 16 bits, with the number of a mask at each pixel
  png       masks/a/000_LABEL.png, ... one a mask
`evaluate` and `finetune` read all of them, with --images for the folder of the images.

"""

_DEMO = """\
Outlines an object in the photograph that comes with the package, or in your own. Needs no
download: the model comes with the package too. With --serve it is a page in the browser, on which
you click yourself.
"""

_DEMO_EXAMPLES = """\
examples:
  segment-anything demo
  segment-anything demo --image dog.jpg --point 320,240
  segment-anything demo --serve

"""


FORMATS = ("coco", "yolo", "labelme", "geojson", "map", "png")
"""Those of `data.writers`, which need not be loaded for `--help`; a test compares them."""


class _Parser(argparse.ArgumentParser):
    """A parser that says in a single line what was wrong."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _numbers(text: str, names: str) -> tuple[float, ...]:
    """As many finite numbers as there are names, both separated by commas."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != len(names.split(",")) or not all(map(math.isfinite, values)):
        wanted = f"{names} as numbers" if "," in names else names
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return values


def _finite(text: str) -> float:
    return _numbers(text, "a number")[0]


def _point(text: str) -> tuple[float, ...]:
    return _numbers(text, "x,y")


def _box(text: str) -> tuple[float, ...]:
    left, top, right, bottom = box = _numbers(text, "left,top,right,bottom")
    if right < left or bottom < top:
        raise argparse.ArgumentTypeError(
            f"expected left,top,right,bottom with left <= right and top <= bottom, got {text!r}"
        )
    return box


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command; `command` in its result names what to do."""
    parser = _Parser(prog="segment-anything", description=_GENERAL, epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_generate(commands)
    commands.add_parser(
        "models", description="Lists the models that are known by name.", help="list the models"
    )
    _add_demo(commands)
    for add in (add_evaluate, add_finetune):
        _add_model(add(commands, _EXIT_CODES))
    return parser


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser(
        "predict",
        description=_PREDICT,
        epilog=_PREDICT_EXAMPLES + _FORMATS + _EXIT_CODES,
        help="outline one object",
    )
    _add_images(parser)
    prompts = parser.add_argument_group("the object")
    _add_point(prompts, "--point", "a click on the object; repeat it for more")
    _add_point(prompts, "--negative", "a click beside the object, on what must stay out")
    prompts.add_argument(
        "--box",
        dest="boxes",
        action="append",
        default=[],
        type=_box,
        metavar="L,T,R,B",
        help="left, top, right, bottom of a frame around the object; several mean one object",
    )
    prompts.add_argument(
        "--mask", metavar="FILE", help="a rough mask, a picture of the image's size, white inside"
    )
    prompts.add_argument(
        "--multimask",
        action="store_true",
        help="keep all masks that the model can mean (part, object, group), the best first",
    )
    prompts.add_argument(
        "--zoom",
        action="store_true",
        help="look at the object once more, in a part of the image: finer outlines, small objects",
    )
    _add_common(parser)
    add_bands_option(parser)


def _add_generate(commands: Any) -> None:
    parser = commands.add_parser(
        "generate",
        description=_GENERATE,
        epilog=_GENERATE_EXAMPLES + _FORMATS + _EXIT_CODES,
        help="outline everything",
    )
    _add_images(parser)
    options = parser.add_argument_group("the search")
    for option in GENERATOR_OPTIONS:
        flag = "--" + option.name.replace("_", "-")
        if option.kind is bool:
            options.add_argument(flag, action="store_true", help=option.meaning)
            continue
        options.add_argument(
            flag,
            type=_finite if option.kind is float else option.kind,
            default=argparse.SUPPRESS,  # so that a model's own may take its place
            metavar="N" if option.kind is int else "X",
            help=f"{option.meaning} (default: {option.default:.3g})",
        )
    options.add_argument(
        "--compile",
        action="store_true",
        help="compile the encoder, which takes a while and pays with many images; PyTorch alone",
    )
    _add_common(parser)
    add_bands_option(parser)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        description=_DEMO,
        epilog=_DEMO_EXAMPLES + _EXIT_CODES,
        help="try it, without a download",
    )
    parser.add_argument("--image", metavar="FILE", help="your own picture")
    _add_point(parser, "--point", "a click on the object; without one, your image's centre")
    page = parser.add_argument_group("the page")
    page.add_argument("--serve", action="store_true", help="serve it; needs the extra `demo`")
    page.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 lets other machines in (default: %(default)s)",
    )
    page.add_argument(
        "--port",
        type=whole_number(0, 2**16 - 1),
        default=7860,
        help="0 takes any free one (default: %(default)s)",
    )
    _add_common(parser)


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="picture files, folders of them, or patterns"
    )
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="look into the folders of folders, too"
    )


def _add_point(group: Any, flag: str, meaning: str) -> None:
    group.add_argument(
        flag,
        dest=flag.lstrip("-") + "s",
        action="append",
        default=[],
        type=_point,
        metavar="X,Y",
        help=meaning,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Options on the model and on what is written."""
    _add_model(parser)
    output = parser.add_argument_group("the output")
    output.add_argument(
        "-o", "--output", default="segmented", metavar="FOLDER", help="default: %(default)s"
    )
    output.add_argument(
        "--format",
        action="append",
        choices=FORMATS,
        help="write this, too, for other tools; repeat it for more (see below)",
    )
    output.add_argument(
        "--exact",
        action="store_true",
        help="--format with exact masks: COCO run lengths, labelme masks, outlines not simplified",
    )
    output.add_argument(
        "--label", default="object", metavar="NAME", help="what --format calls each object"
    )
    output.add_argument("--json-only", action="store_true", help="write no pictures")
    add_quiet_option(output)


def _add_model(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("the model")
    model.add_argument(
        "--model",
        default="sam_vit_t",
        metavar="NAME",
        help="a name that `models` lists, a folder, a Hub repository such as "
        "facebook/sam-vit-base, or a .pth file of Meta's (default: %(default)s)",
    )
    model.add_argument(
        "--framework",
        default="auto",
        choices=("auto", "torch", "tf"),
        help="PyTorch, or Keras on TensorFlow (or on the backend that KERAS_BACKEND names); "
        "default: PyTorch where it is installed",
    )
    model.add_argument(
        "--device",
        default="auto",
        help="cpu, cuda, cuda:1, mps, ... (default: the fastest); PyTorch alone",
    )
    model.add_argument(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16", "int8"),
        help="precision of the image encoder, in Keras of the decoder too; int8 is PyTorch's "
        "(default: %(default)s)",
    )
