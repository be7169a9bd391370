"""The demo as a page: click on a picture in the browser, see the mask. Needs the extra `demo`.

Nothing is loaded from elsewhere: no fonts, no scripts, and no visit is counted.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from PIL import Image

from ..data.files import image_size, read_picture
from ..model.configuration_segment_anything import SegmentAnythingModelConfig
from ..prediction.mask_generator import usual_options
from .session import BOX, NOT_OBJECT, OBJECT, DemoSession

MAX_FILE_SIZE = "20mb"
MAX_PIXELS = 64_000_000

_MEANINGS = [("Object", OBJECT), ("Background", NOT_OBJECT), ("Box", BOX)]
_INTRODUCTION = """\
# Segment Anything
Click on something in the picture. Further clicks add to the mask or, on the background, take away \
from it; a click on a disc removes that disc. A box takes two clicks, on corners across from each \
other.
"""
_CSS = """
#canvas img { cursor: crosshair; }
#canvas .image-frame, #canvas .image-frame img { width: 100%; }
#canvas .image-frame img { max-height: 75vh; object-fit: scale-down; }
#caption { min-height: 1.6em; }
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
"""
_KEEP_SECONDS = 3600
_LEAST_SIDE = 900  # pixels: about the width that the page has for the picture
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
_FONT_MONO = ["ui-monospace", "monospace"]


def build_app(model: Any, image: Image.Image) -> gr.Blocks:
    """The page. Each visitor has a picture and marks of their own; the model is shared.

    Args:
        model: A `SegmentAnythingModel` in evaluation mode.
        image: The picture that a visitor finds.
    """
    with gr.Blocks(
        title="Segment Anything",
        analytics_enabled=False,
        delete_cache=(_KEEP_SECONDS, _KEEP_SECONDS),
    ) as app:
        gr.Markdown(_INTRODUCTION)
        visit = gr.State(time_to_live=_KEEP_SECONDS, delete_callback=_leave)
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                marking = _Marking()
                canvas = _canvas()
                caption = gr.Markdown(elem_id="caption")
            with gr.Column(scale=1, min_width=260):
                upload = _upload()
                closely = gr.Checkbox(
                    label="Look closely",
                    info="Around what is marked: for small objects and fine outlines.",
                    elem_id="closely",
                )
                everything = gr.Button("Find everything", variant="primary", elem_id="everything")
                with gr.Accordion("How to find everything", open=False):
                    search = _search_options(model.config)
                downloads = _downloads()
        seen = [visit, canvas, caption, marking.guess, *downloads]

        app.load(lambda: _seen(_Visit(model, image)), outputs=seen)
        upload.upload(_open, [visit, upload], [*seen, upload], show_progress_on=caption)
        everything.click(_everything, [visit, *search], seen, show_progress_on=caption)
        # A click is answered at once: a sign that work is going on would only flicker. By default
        # the page drops what is clicked before the last answer has come.
        at_once: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "multiple"}
        canvas.select(_click, [visit, marking.meaning], seen, **at_once)
        for button, act in (
            (marking.guess, _Visit.next_guess),
            (marking.undo, _Visit.undo),
            (marking.clear, _Visit.clear),
        ):
            button.click(partial(_do, act), visit, seen, **at_once)
        closely.input(_look_closely, [visit, closely], seen, **at_once)
    return app


def start(app: gr.Blocks, host: str = "127.0.0.1", port: int = 7860) -> str:
    """Serves the page from a thread of its own, until `app.close()`.

    Args:
        app: The page.
        host: Address to listen at; "0.0.0.0" lets other machines in.
        port: 0 takes any free one.

    Returns:
        The page's URL on this machine.

    Raises:
        OSError: The port is taken.
        ValueError: There is no such port.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"port must be a number from 0 to 65535, got {port}.")
    theme = gr.themes.Soft(primary_hue="blue", font=_FONT, font_mono=_FONT_MONO)
    _, url, _ = app.launch(
        server_name=host,
        server_port=port or _free_port(),
        theme=theme,
        css=_CSS,
        share=False,
        max_file_size=MAX_FILE_SIZE,
        footer_links=[],
        prevent_thread_lock=True,
        quiet=True,
    )
    return url


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Marking:
    """What stands above the picture: what a click means, and the way back."""

    def __init__(self) -> None:
        with gr.Row(equal_height=True):
            self.meaning = gr.Radio(
                _MEANINGS, value=OBJECT, container=False, scale=4, min_width=300, elem_id="meaning"
            )
            self.guess = _small_button("Next guess", interactive=False, elem_id="guess")
            self.undo = _small_button("Undo", elem_id="undo")
            self.clear = _small_button("Clear", elem_id="clear")


def _small_button(label: str, **options: Any) -> gr.Button:
    return gr.Button(label, size="sm", scale=1, min_width=96, **options)


def _canvas() -> gr.Image:
    return gr.Image(
        interactive=False,
        show_label=False,
        type="pil",
        buttons=["fullscreen"],
        elem_id="canvas",
        alt_text="The picture with masks and marks",
    )


def _upload() -> gr.File:
    """Not a gr.Image, which would decode whatever comes before its size is judged."""
    return gr.File(
        label="Your own picture",
        file_types=[".jpg", ".jpeg", ".png", ".webp"],
        height=180,
        elem_id="upload",
    )


def _downloads() -> list[gr.DownloadButton]:
    labels = {
        "mask": "Download mask",
        "cut-out": "Download cut-out",
        "archive": "Download masks and JSON",
    }
    return [
        gr.DownloadButton(label, interactive=False, size="md", elem_id=name)
        for name, label in labels.items()
    ]


def _search_options(config: SegmentAnythingModelConfig) -> list[gr.Slider]:
    start = usual_options(config)
    return [
        gr.Slider(4, 48, 24, step=4, label="Clicks along each side"),
        gr.Slider(0, 1, start["pred_iou_thresh"], step=0.01, label="Least predicted quality"),
        gr.Slider(0, 1, start["stability_score_thresh"], step=0.01, label="Least stability"),
    ]


class _Visit(DemoSession):
    """A visitor's session, with the folder of the files that can be downloaded now."""

    folder: Path | None = None

    @property
    def zoom(self) -> int:
        """Pixels on the page, along a side, for one of the picture.

        Small pictures are enlarged here, because gradio mistakes where a click on one was that the
        browser enlarged.
        """
        return max(1, math.ceil(_LEAST_SIDE / max(self.image.size)))

    def enlarged_picture(self) -> Image.Image:
        """The picture with masks and marks, as large as the page has room for."""
        width, height = self.image.size
        return self.picture().resize((width * self.zoom, height * self.zoom))

    def files(self) -> list[str | None]:
        """The files of what is in sight, in place of the earlier ones."""
        self.remove_files()
        if not self.records:
            return [None, None, None]
        self.folder = Path(mkdtemp(prefix="segment-anything-"))
        return [str(path) for path in self.write_files(self.folder)]

    def remove_files(self) -> None:
        """Removes the folder; gradio keeps copies of its own while they are needed."""
        if self.folder is not None:
            rmtree(self.folder, ignore_errors=True)


def _leave(visit: _Visit | None) -> None:
    if visit is not None:
        visit.remove_files()


def _seen(visit: _Visit) -> tuple[Any, ...]:
    """The session, and what of it is on the page."""
    downloads = [
        gr.DownloadButton(value=path, interactive=path is not None) for path in visit.files()
    ]
    guess = gr.Button(interactive=visit.n_guesses > 1)
    return visit, visit.enlarged_picture(), visit.caption(), guess, *downloads


def _present(visit: _Visit | None) -> _Visit:
    """The visit, which gradio forgets when nothing has happened for long."""
    if visit is None:
        raise gr.Error("The page was left alone for too long. Reload it.", print_exception=False)
    return visit


def _click(visit: _Visit | None, meaning: str, event: gr.SelectData) -> tuple[Any, ...]:
    visit = _present(visit)
    x, y = (at / visit.zoom for at in event.index)
    visit.click(x, y, meaning)
    return _seen(visit)


def _do(act: Callable[[_Visit], None], visit: _Visit | None) -> tuple[Any, ...]:
    visit = _present(visit)
    act(visit)
    return _seen(visit)


def _look_closely(visit: _Visit | None, is_close: bool) -> tuple[Any, ...]:
    visit = _present(visit)
    visit.look_closely(is_close)
    return _seen(visit)


def _everything(
    visit: _Visit | None, points_per_side: int, pred_iou_thresh: float, stability: float
) -> tuple[Any, ...]:
    visit = _present(visit)
    visit.find_everything(
        points_per_side=points_per_side,
        pred_iou_thresh=pred_iou_thresh,
        stability_score_thresh=stability,
    )
    return _seen(visit)


def _open(visit: _Visit | None, path: str) -> tuple[Any, ...]:
    visit = _present(visit)
    try:
        width, height = image_size(path)
        is_small = width * height <= MAX_PIXELS  # before it is decoded
        picture = read_picture(path) if is_small else None
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        gr.Warning(f"The file is no picture that can be read: {reason}.")
        return *_seen(visit), None
    if picture is None:
        gr.Warning(
            f"The picture is too large: of {width} x {height} pixels, at most {MAX_PIXELS} can "
            "be opened."
        )
    else:
        visit.open(picture)
    return *_seen(visit), None  # ready for the next file
