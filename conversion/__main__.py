"""The command: `python -m conversion SOURCE FOLDER --to FORMAT`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conversion.convert import convert
from conversion.formats import WRITERS

_FORMATS = """\
formats:
  segment_anything  a folder of this package: from_pretrained of both classes reads it
  huggingface       a folder of transformers' SamModel
  meta              a .pth file of Meta's segment_anything
  onnx              ONNX Runtime and transformers.js; needs the extra `export`
  tf_saved_model    a TensorFlow SavedModel; needs the extra `tensorflow`
  litert            two TFLite files; needs the extra `tensorflow`
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Source, folder, format and sizes."""
    parser = argparse.ArgumentParser(
        prog="python -m conversion",
        description="Converts a model, compares it with the implementation that it comes from or "
        "goes to where that is installed, and writes what was found to report.json and report.md. "
        "The folder appears at the end, whole, or not at all.",
        epilog=_FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source",
        help="a preset such as sam_vit_b, a folder or Hub repository of this package or of "
        "transformers' SAM, Meta's .pth, tfimm's .h5",
    )
    parser.add_argument("folder", type=Path, help="where to write; must not exist yet")
    parser.add_argument("--to", choices=WRITERS, default="segment_anything", help="what to write")
    parser.add_argument(
        "--input-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="adapt the model to images of another size",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Converts; 0 when all went well, 2 with a message otherwise."""
    options = parse_arguments(arguments)
    try:
        report = convert(options.source, options.folder, options.to, options.input_size)
    except (ImportError, OSError, ValueError) as error:
        print(f"conversion: {error}", file=sys.stderr)
        return 2
    print(report.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
