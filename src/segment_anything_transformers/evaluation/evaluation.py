"""How good a model's masks are: clicks, boxes and everything mode against true masks.

`evaluate` works with either framework and needs numpy and scipy alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.samples import Faults, Sample, without_faults
from ..model.mask_ops import RLE, masks_to_boxes, masks_to_rles, next_click, rle_to_coco
from ..prediction.mask_generator import SAMAutomaticMaskGenerator, usual_options
from ..prediction.object_masks import zoom_to_object
from ..prediction.predictor import SAMPredictor
from ..prediction.prompts import FOREGROUND, sure_logits
from ..prediction.zoom import box_around
from .measures import boundary_iou, masks_iou, matched_share, rank_correlation

CLICKS = (1, 2, 3, 5, 8)
MAX_CLICKS = 1000
PROPOSALS = (10, 100, 1000)
"""How many of the masks of everything mode, the best first, are looked at for average recall."""

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}
"""Areas in pixels of the image that COCO calls so, from and below."""

ALL = "all"
_OBJECTS_AT_ONCE = 16


@dataclass(frozen=True)
class ObjectQuality:
    """How well one object was segmented."""

    image: str
    number: int
    """Index of the object's mask in its sample."""
    area: int
    """Pixels of the true mask."""
    box: tuple[int, int, int, int]
    """The true mask's left, top, right and bottom, the prompt of the figures with a box."""
    figures: dict[str, float]
    """IoUs and recalls by the names that `Evaluation` explains."""
    ratings: list[tuple[float, float]]
    """Predicted and real IoU of each mask of the first click and of the box."""
    box_mask: RLE
    """The single mask for the box, as COCO run lengths."""

    @property
    def size(self) -> str:
        """What COCO calls an object of this area."""
        return next(name for name, (low, high) in SIZES.items() if low <= self.area < high)


@dataclass(frozen=True)
class Evaluation:
    """The quality of every object, and means over them.

    Names of figures, all between 0 and 1:
    - `click_1`, `click_2`, ...: IoU after so many clicks, each at the centre of the largest error.
      The first is answered by the mask of several that the model rates highest, later ones by the
      single mask.
    - `click_1_oracle`: IoU of the best of the first click's masks.
    - `box`: IoU of the single mask for the true mask's box; `box_best` of the one of several that
      the model rates highest; `box_oracle` of the best of these.
    - `box_boundary`, `click_1_boundary` and so on: boundary IoU of these masks.
    - `recall_10`, ...: average recall (IoU 0.5 to 0.95) of the best 10 masks of everything mode.
    - `found`: share of objects that one of these masks covers with an IoU of at least 0.5.
    """

    objects: list[ObjectQuality]
    faults: list[str] = field(default_factory=list)
    """Messages on the samples that were skipped."""

    def means(self) -> dict[str, dict[str, float]]:
        """Mean of each figure, and the number of `objects`, over all and by COCO's sizes."""
        groups = {ALL: self.objects}
        for size in SIZES:
            groups[size] = [quality for quality in self.objects if quality.size == size]
        return {name: _means(group) for name, group in groups.items()}

    @property
    def rating_correlation(self) -> float | None:
        """Spearman's correlation of predicted and real IoU; None if one of them is constant."""
        ratings = [rating for quality in self.objects for rating in quality.ratings]
        predicted, real = np.array(ratings).reshape(-1, 2).T
        return rank_correlation(predicted, real)

    def worst(self, count: int, figure: str = "box") -> list[ObjectQuality]:
        """The objects with the lowest values of a figure, the worst first."""
        return sorted(self.objects, key=lambda quality: quality.figures[figure])[:count]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON can hold it."""
        rows = [
            {
                "image": quality.image,
                "object": quality.number,
                "area": quality.area,
                "size": quality.size,
                "box": list(quality.box),
                "box_mask": quality.box_mask,
                **quality.figures,
            }
            for quality in self.objects
        ]
        return {
            "means": self.means(),
            "rating_correlation": self.rating_correlation,
            "faults": self.faults,
            "objects": rows,
        }

    def save(self, path: str | Path, **about: Any) -> None:
        """Writes a JSON file.

        Args:
            path: The file.
            about: What it tells besides, such as the model's name.
        """
        Path(path).write_text(json.dumps({**about, **self.to_dict()}, indent=1) + "\n")


def _means(objects: list[ObjectQuality]) -> dict[str, float]:
    names = objects[0].figures if objects else {}
    means = {name: float(np.mean([q.figures[name] for q in objects])) for name in names}
    return {"objects": len(objects), **means}


def evaluate(
    model: Any,
    samples: Sequence[Sample],
    clicks: Sequence[int] = CLICKS,
    everything: dict[str, Any] | None = None,
    faults: Faults = "refuse",
    progress: Callable[[Iterable[Sample]], Iterable[Sample]] = iter,
    zoom: bool = False,
) -> Evaluation:
    """Measures a model's masks on every object of the samples.

    Args:
        model: A `SegmentAnythingModel` of either framework, or a `SAMPredictor`.
        samples: Images with true masks, as `load_samples` reads them.
        clicks: Numbers of clicks after which the IoU is taken.
        everything: Arguments of `SAMAutomaticMaskGenerator` for everything mode. Those that are
            not given are its defaults, or what suits a model that these do not
            (`usual_options`). None leaves it out, which saves most of the time.
        faults: Whether faulty samples are skipped, or refused when they are met.
        progress: Passes the samples on, such as `tqdm`.
        zoom: Whether each object is looked at more closely, see `SAMPredictor.zoom`: around its
            box, and around the mask that its first click finds in the whole image, where the same
            click is then answered again. Everything mode does without.

    Raises:
        AnnotationError: A sample is faulty and not to be skipped.
        ValueError: No sample is left, `clicks` are not rising numbers from 1, or an argument of
            the generator is impossible.
    """
    clicks = list(clicks)
    if not clicks or clicks[0] < 1 or sorted(set(clicks)) != clicks:
        raise ValueError(f"clicks must be rising numbers from 1, such as {CLICKS}, got {clicks}.")
    if clicks[-1] > MAX_CLICKS:
        raise ValueError(f"At most {MAX_CLICKS} clicks are measured, got {clicks[-1]}.")
    predictor = model if isinstance(model, SAMPredictor) else SAMPredictor(model)
    generator = None
    if everything is not None:
        usual = usual_options(predictor.config)
        options = {**usual, **everything, "output_mode": "binary_mask"}
        generator = SAMAutomaticMaskGenerator(predictor.backend, **options)
        generator.predictor = predictor
    skipped: list[str] = []
    objects = []
    for sample in progress(without_faults(samples, faults, skipped)):
        objects += _qualities_of(predictor, generator, sample, clicks, zoom)
    if not objects:
        raise ValueError(f"There is no sample to evaluate. Faults: {'; '.join(skipped) or 'none'}.")
    return Evaluation(objects, skipped)


def _qualities_of(
    predictor: SAMPredictor,
    generator: SAMAutomaticMaskGenerator | None,
    sample: Sample,
    clicks: list[int],
    zoom: bool,
) -> list[ObjectQuality]:
    known = None if sample.ignored is None else ~sample.ignored
    recalls = _recalls(generator, sample, known)
    predictor.set_image(sample.image)
    qualities = []
    for start in range(0, len(sample.masks), _OBJECTS_AT_ONCE):
        truth = sample.masks[start : start + _OBJECTS_AT_ONCE]
        boxes = masks_to_boxes(truth)
        trials = [_Trial(mask, known) for mask in truth]
        if zoom:
            box_masks = np.concatenate(
                [
                    _answer_closely(predictor, box, trial, clicks)
                    for box, trial in zip(boxes, trials, strict=True)
                ]
            )
        else:
            box_masks = _answer_boxes(predictor, boxes, trials)
            _answer_clicks(predictor, trials, clicks)
        rows = zip(trials, boxes, masks_to_rles(box_masks), strict=True)
        for number, (trial, box, rle) in enumerate(rows, start):
            figures = {**trial.figures, **recalls[number]}
            qualities.append(
                ObjectQuality(
                    sample.name,
                    number,
                    int(trial.truth.sum()),
                    tuple(box.tolist()),
                    figures,
                    trial.ratings,
                    rle_to_coco(rle),
                )
            )
    return qualities


class _Trial:
    """One object: its truth, what was clicked so far, and what came of it."""

    def __init__(self, truth: np.ndarray, known: np.ndarray | None) -> None:
        self.truth, self.known = truth, known
        self.mask = np.zeros_like(truth)
        self.logits = np.zeros((1, 0, 0), np.float32)
        self.points: list[tuple[int, int]] = []
        self.labels: list[int] = []
        self.figures: dict[str, float] = {}
        self.ratings: list[tuple[float, float]] = []

    def click(self) -> bool:
        """Adds the next click; False if nothing is left to correct."""
        click = next_click(self.mask, self.truth, self.known, self.points)
        if click is not None:
            self.points.append(click[0])
            self.labels.append(click[1])
        return click is not None

    def iou(self, masks: np.ndarray) -> np.ndarray:
        return masks_iou(masks, self.truth, self.known)

    def rate(self, masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """The IoUs of masks (K, H0, W0), which are kept beside their scores."""
        ious = self.iou(masks)
        self.ratings += zip(scores.tolist(), ious.tolist(), strict=True)
        return ious

    def note(self, name: str, mask: np.ndarray) -> None:
        """Keeps IoU and boundary IoU of a mask (H0, W0)."""
        self.figures[name] = float(self.iou(mask))
        self.figures[f"{name}_boundary"] = boundary_iou(mask, self.truth, self.known)


def _answer_boxes(predictor: SAMPredictor, boxes: np.ndarray, trials: list[_Trial]) -> np.ndarray:
    """Notes the figures of the boxes (n, 4); returns the single masks (n, H0, W0)."""
    single, single_scores, _ = predictor(boxes=boxes[:, None], multimask_output=False)
    several, scores, _ = predictor(boxes=boxes[:, None])
    for index, trial in enumerate(trials):
        trial.note("box", single[index, 0])
        trial.rate(single[index], single_scores[index])
        ious = trial.rate(several[index], scores[index])
        trial.figures["box_best"] = float(ious[scores[index].argmax()])
        trial.figures["box_oracle"] = float(ious.max())
    return single[:, 0]


def _answer_closely(
    predictor: SAMPredictor, box: np.ndarray, trial: _Trial, clicks: list[int]
) -> np.ndarray:
    """As `_answer_boxes` and `_answer_clicks` for one object, zooming to it."""
    predictor.zoom(box)
    box_masks = _answer_boxes(predictor, box[None], [trial])
    _answer_clicks(predictor, [trial], clicks, look=lambda: _look_closely(predictor, trial))
    predictor.zoom(None)
    return box_masks


def _look_closely(predictor: SAMPredictor, trial: _Trial) -> None:
    """Zooms to what the first click means, and further out where a later click lies beyond it."""
    if len(trial.points) == 1:
        zoom_to_object(predictor, {"points": np.array(trial.points)})
        return
    left, top, right, bottom = predictor.region
    x, y = trial.points[-1]
    if trial.labels[-1] and not (left <= x < right and top <= y < bottom):
        clicked = np.array(trial.points)[np.array(trial.labels) == FOREGROUND]
        predictor.zoom(box_around(clicked, trial.mask))
        trial.logits = predictor.preprocess_masks(sure_logits(trial.mask)[None])


def _answer_clicks(
    predictor: SAMPredictor,
    trials: list[_Trial],
    clicks: list[int],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Clicks at each object until the last number of clicks, and notes the figures.

    After each click `look` may change what the predictor sees.
    """
    active = trials
    for count in range(1, clicks[-1] + 1):
        # Who has nothing left to correct stops clicking, and keeps the mask.
        active = [trial for trial in active if trial.click()]
        if active:
            look()
            _answer_click(predictor, active, is_first=count == 1)
        if count in clicks:
            for trial in trials:
                trial.note(f"click_{count}", trial.mask)


def _answer_click(predictor: SAMPredictor, trials: list[_Trial], is_first: bool) -> None:
    """Gives every object the mask that its clicks and its earlier mask mean."""
    earlier = None if is_first else np.stack([trial.logits for trial in trials])
    masks, scores, logits = predictor(
        points=np.array([trial.points for trial in trials]),
        labels=np.array([trial.labels for trial in trials]),
        masks=earlier,
        multimask_output=is_first,
    )
    for index, trial in enumerate(trials):
        best = scores[index].argmax()
        if is_first:
            ious = trial.rate(masks[index], scores[index])
            trial.figures["click_1"] = float(ious[best])
            trial.figures["click_1_oracle"] = float(ious.max())
        trial.mask, trial.logits = masks[index, best], logits[index, best][None]


def _recalls(
    generator: SAMAutomaticMaskGenerator | None, sample: Sample, known: np.ndarray | None
) -> list[dict[str, float]]:
    """What everything mode found of each object."""
    if generator is None:
        return [{} for _ in sample.masks]
    records = sorted(generator.generate(sample.image), key=lambda record: -record["predicted_iou"])
    found = [record["segmentation"] for record in records[: PROPOSALS[-1]]]
    ious = np.array([masks_iou(mask, sample.masks, known) for mask in found]).reshape(
        -1, len(sample.masks)
    )
    figures = {f"recall_{count}": matched_share(ious[:count]) for count in PROPOSALS}
    figures["found"] = (ious.max(axis=0, initial=0.0) >= 0.5).astype(float)
    return [
        {name: float(values[index]) for name, values in figures.items()}
        for index in range(len(sample.masks))
    ]
