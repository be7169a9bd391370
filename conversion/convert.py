"""A conversion from its source to the folder: written, compared, reported, renamed."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conversion.comparison import compare, peer_of_result, peer_of_source
from conversion.formats import WRITERS
from conversion.report import Report
from segment_anything_transformers import SegmentAnythingModel


def convert(source: str, folder: Path, to: str, input_size: Sequence[int] | None = None) -> Report:
    """Writes the model in another format, with a report of how it compares.

    Args:
        source: What `SegmentAnythingModel.from_pretrained` reads.
        folder: Where to write; appears at the end, whole, or not at all.
        to: A key of `formats.WRITERS`.
        input_size: Size (H, W) to adapt the model to, by default the source's.

    Raises:
        FileExistsError: The folder exists.
        ImportError: The format needs a package that is not installed.
        OSError: The source cannot be read.
        ValueError: The model does not fit the format, or computes something else in it.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists. Remove it, or choose another folder.")
    sizes: dict[str, Any] = {} if input_size is None else {"input_size": tuple(input_size)}
    model = SegmentAnythingModel.from_pretrained(source, **sizes).float().eval()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        made = Path(place) / "made"
        WRITERS[to](model, made)
        origin = None if input_size else peer_of_source(source, model)
        peers = [peer for peer in (origin, peer_of_result(to, made, model)) if peer is not None]
        report = Report.of(source, to, model, made, compare(model, peers))
        wrong = [comparison for comparison in report.comparisons if not comparison.agrees]
        if wrong:
            raise ValueError(
                f"The masks are not those of {wrong[0].against}; largest differences: "
                f"{wrong[0].differences}."
            )
        report.write(made)
        made.rename(folder)
    return report
