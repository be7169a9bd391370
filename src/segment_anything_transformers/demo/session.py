"""What a person does in the demo: a picture, clicks and boxes on it, and the masks they mean."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.pictures import png
from ..model.mask_ops import rle_to_mask
from ..prediction.mask_generator import SAMAutomaticMaskGenerator
from ..prediction.object_masks import mask_records, segment_closely, segment_object
from ..prediction.predictor import SAMPredictor
from ..prediction.prompts import BACKGROUND, FOREGROUND
from ..prediction.visualization import draw_masks, draw_prompts, marker_radius, to_rgb

MAX_SIDE = 2048
"""Larger pictures are shrunk: nobody sees more on a screen, and each answer travels to it."""

OBJECT, NOT_OBJECT, BOX = "object", "not object", "box"

Mark = tuple[str, tuple[float, float]]
"""What a click means, and where it was."""

Marks = tuple[Mark, ...]


class DemoSession:
    """One person's picture, and what was marked on it, step by step.

    Args:
        model: A `SegmentAnythingModel` in evaluation mode; sessions share it.
        image: The picture, see `open`.
    """

    def __init__(self, model: Any, image: Image.Image) -> None:
        """Opens the picture, on which nothing is marked yet."""
        self.model = model
        self.predictor = SAMPredictor(model)
        self.guess = 0  # index of the mask in sight, among those that the prompts can mean
        self._found: list[dict[str, Any]] | None = None  # of everything, while that is in sight
        self._is_close = False
        self.open(image)

    def open(self, image: Image.Image) -> None:
        """Puts a picture in place of the earlier one and forgets what was marked on that."""
        self.image = to_rgb(image)
        self.image.thumbnail((MAX_SIDE, MAX_SIDE))
        self.predictor.set_image(self.image)
        self._steps: list[Marks] = []
        self._mark(())

    def clear(self) -> None:
        """Takes all marks away, and what was found; a step that can be undone."""
        self._mark(())

    def click(self, x: float, y: float, means: str = OBJECT) -> None:
        """Adds a mark at a pixel of the picture, or removes the point that is there already.

        Args:
            x: From the left.
            y: From the top.
            means: `OBJECT`, `NOT_OBJECT`, or `BOX` for one corner of a box; the next click
                of this kind is the corner across.

        Raises:
            ValueError: Outside the picture, or an unknown meaning.
        """
        if not (0 <= x < self.image.width and 0 <= y < self.image.height):
            raise ValueError(
                f"({x:g}, {y:g}) lies outside {self.image.width} x {self.image.height}"
            )
        if means not in (OBJECT, NOT_OBJECT, BOX):
            raise ValueError(f"Unknown meaning of a click: {means!r}.")
        there = None if means == BOX else self._point_at(x, y)
        if there is None:
            self._mark((*self._marks, (means, (x, y))))
        else:
            self._mark(tuple(mark for mark in self._marks if mark != there))

    def undo(self) -> None:
        """Takes back the last step, or the search for everything."""
        if self._found is not None:
            self._found = None
        elif len(self._steps) > 1:
            del self._steps[-1]
        self._answer()

    def next_guess(self) -> None:
        """Shows the next of the masks that a lone click can mean, after the last the first."""
        if self.n_guesses:
            self.guess = (self.guess + 1) % self.n_guesses

    def look_closely(self, is_close: bool) -> None:
        """Whether prompts are answered from the part of the picture around what they mean."""
        self._is_close = is_close
        self._answer()

    def find_everything(self, **options: Any) -> None:
        """Looks for all objects, with options of `SAMAutomaticMaskGenerator`."""
        generator = SAMAutomaticMaskGenerator(self.model, **options, output_mode="coco_rle")
        self._found = generator.generate(self.image)

    @property
    def _marks(self) -> Marks:
        return self._steps[-1]

    @property
    def prompts(self) -> dict[str, list[Any]]:
        """Points, labels and boxes that were marked, without those of which there are none."""
        points = [(xy, means == OBJECT) for means, xy in self._marks if means != BOX]
        corners = [xy for means, xy in self._marks if means == BOX]
        boxes = [
            [*np.minimum(a, b).tolist(), *np.maximum(a, b).tolist()]
            for a, b in zip(corners[::2], corners[1::2], strict=False)
        ]
        labels = [FOREGROUND if is_object else BACKGROUND for _, is_object in points]
        every: dict[str, list[Any]] = {
            "points": [list(xy) for xy, _ in points],
            "labels": labels,
            "boxes": boxes,
        }
        return {name: rows for name, rows in every.items() if rows}

    @property
    def n_guesses(self) -> int:
        """How many masks the prompts can mean; 0 without prompts or with everything found."""
        return 0 if self._found is not None else len(self._scores)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The masks in sight, as `mask_records` has them: everything, or the guess."""
        if self._found is not None:
            return self._found
        shown = slice(self.guess, self.guess + 1)
        return mask_records(self._masks[shown], self._scores[shown])

    @property
    def masks(self) -> np.ndarray:
        """The masks in sight, (n, H0, W0) bool."""
        if self._found is None:
            return self._masks[self.guess : self.guess + 1]
        size_hw = (self.image.height, self.image.width)
        masks = [rle_to_mask(record["segmentation"]) for record in self._found]
        return np.array(masks, bool).reshape(-1, *size_hw)

    def picture(self) -> Image.Image:
        """The picture with masks and marks on it."""
        overlay = draw_masks(self.image, self.masks)
        if self._found is not None:
            return overlay
        prompts, pending = self.prompts, self._pending_corner()
        points, labels = prompts.get("points", []), prompts.get("labels", [])
        boxes = prompts.get("boxes", []) + ([[*pending, *pending]] if pending else [])
        return draw_prompts(overlay, points or None, labels or None, boxes or None)

    def caption(self) -> str:
        """One sentence on what is in sight, and what to do next."""
        if self._found is not None:
            return f"{len(self._found)} {'mask' if len(self._found) == 1 else 'masks'}."
        if self._pending_corner():
            return "Now click the corner across."
        if not self.n_guesses:
            return "Click on something in the picture."
        score, share = self._scores[self.guess], self._masks[self.guess].mean()
        guess = f"Guess {self.guess + 1} of {self.n_guesses}. " if self.n_guesses > 1 else ""
        return f"{guess}{share:.1%} of the picture, predicted quality {score:.2f}."

    def write_files(self, folder: Path) -> list[Path]:
        """Writes what is in sight, and returns the files: mask, cut-out, archive.

        The mask is a PNG, white where any mask in sight is; the cut-out the picture, transparent
        elsewhere; the archive a ZIP with a PNG for each mask, and a JSON of their scores and run
        lengths.
        """
        paths = [folder / name for name in ("mask.png", "cut_out.png", "masks.zip")]
        union = Image.fromarray(np.asarray(self.masks.any(axis=0)))
        union.save(paths[0])
        cut_out = self.image.copy()
        cut_out.putalpha(union.convert("L"))
        cut_out.save(paths[1], compress_level=1)  # larger, and written at once
        self._write_archive(paths[2])
        return paths

    def _write_archive(self, path: Path) -> None:
        size = {"width": self.image.width, "height": self.image.height}
        description = {**size, "prompts": self.prompts, "masks": self.records}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("masks.json", json.dumps(description))
            for index, mask in enumerate(self.masks):
                archive.writestr(f"mask_{index:03d}.png", png(mask, one_bit=True))

    def _mark(self, marks: Marks) -> None:
        """Takes a step, to these marks."""
        self._steps.append(marks)
        self._found = None
        self._answer()

    def _point_at(self, x: float, y: float) -> Mark | None:
        """The point whose disc is drawn over that pixel."""
        reach = marker_radius(self.image)
        for mark in self._marks:
            means, (at_x, at_y) = mark
            if means != BOX and np.hypot(at_x - x, at_y - y) <= reach:
                return mark
        return None

    def _pending_corner(self) -> tuple[float, float] | None:
        """The corner of a box that still lacks the one across."""
        corners = [xy for means, xy in self._marks if means == BOX]
        return corners[-1] if len(corners) % 2 else None

    def _answer(self) -> None:
        """Segments what the prompts mean now."""
        self.guess = 0
        prompts: dict[str, Any] = {name: np.array(rows) for name, rows in self.prompts.items()}
        if not prompts:
            self._masks = np.zeros((0, self.image.height, self.image.width), bool)
            self._scores = np.zeros(0, np.float32)
            return
        is_lone_click = set(prompts) == {"points", "labels"} and len(prompts["points"]) == 1
        if self._is_close:
            found = segment_closely(self.predictor, lambda: prompts, is_lone_click)
            self._masks, self._scores, _ = found
        else:
            self.predictor.zoom(None)
            self._masks, self._scores = segment_object(self.predictor, prompts, is_lone_click)
