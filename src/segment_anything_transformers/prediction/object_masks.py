"""One object's masks in the set image, and masks as records for JSON."""

from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np

from ..model.mask_ops import masks_to_boxes, masks_to_rles, rle_to_coco
from .predictor import SAMPredictor
from .prompts import FOREGROUND
from .zoom import box_around

Record = dict[str, Any]


class Look(Enum):
    """Where the masks of an object come from that was to be looked at closely."""

    CLOSE = "the part around the object"
    WHOLE = "the whole image: the model rates what it sees there higher"
    NOTHING_CLOSER = "the whole image: the object fills it, or none was found"


def segment_object(
    predictor: SAMPredictor, prompts: dict[str, Any], keep_all: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the object that the prompts mean together, the best first.

    A lone click may mean a part or the whole: of its several masks the one that the model rates
    highest is the better answer. Other prompts are answered by the single mask.

    Args:
        predictor: Its image is set.
        prompts: Any of "points" (M1, 2), "labels" (M1,), "boxes" (M2, 4), "masks" (M3, H', W'),
            as `SAMPredictor` takes them without a batch axis.
        keep_all: Whether all K masks are wanted rather than the best.

    Returns:
        Masks (k, H0, W0) bool and scores (k,) float32, where k is K or 1.
    """
    is_ambiguous = set(prompts) <= {"points", "labels"} and len(prompts.get("points", ())) == 1
    masks, scores, _ = predictor(**prompts, multimask_output=keep_all or is_ambiguous)
    order = np.argsort(-scores, kind="stable")[: None if keep_all else 1]
    return masks[order], scores[order]


def segment_closely(
    predictor: SAMPredictor, ask: Callable[[], dict[str, Any]], keep_all: bool = False
) -> tuple[np.ndarray, np.ndarray, Look]:
    """As `segment_object`, from the whole image or from close by, whichever is rated higher.

    Close by outlines are finer, but what a prompt means may lie beyond what is seen there. The
    predictor stays where the answer is from.

    Args:
        predictor: Its image is set.
        ask: Makes the prompts, as for `segment_object`, for the part that is seen: logits of masks
            differ from part to part.
        keep_all: Whether all K masks are wanted rather than the best.

    Returns:
        Masks (k, H0, W0) bool, scores (k,) float32, and where they are from.
    """
    predictor.zoom(None)
    whole, prompts = predictor.region, ask()
    masks, scores = segment_object(predictor, prompts, keep_all)
    # Of all masks the best may be another than the one that these prompts mean.
    zoom_to_object(predictor, prompts, None if keep_all else masks[0])
    if predictor.region == whole:
        return masks, scores, Look.NOTHING_CLOSER
    close_masks, close_scores = segment_object(predictor, ask(), keep_all)
    if close_scores[0] >= scores[0]:
        return close_masks, close_scores, Look.CLOSE
    predictor.zoom(None)
    return masks, scores, Look.WHOLE


def zoom_to_object(
    predictor: SAMPredictor, prompts: dict[str, Any], mask: np.ndarray | None = None
) -> None:
    """Zooms to the boxes, or to the mask that is found in the whole image, and to its points.

    Args:
        predictor: Its image is set.
        prompts: As for `segment_object`.
        mask: The mask (H0, W0) that is found in the whole image, where it is known.
    """
    points = np.asarray(prompts.get("points", np.zeros((0, 2))))
    labels = np.asarray(prompts.get("labels", np.full(len(points), FOREGROUND)))
    corners = np.asarray(prompts.get("boxes", np.zeros((0, 4)))).reshape(-1, 2)
    predictor.zoom(None)
    if len(corners):
        mask = None
    elif mask is None:
        [mask], _ = segment_object(predictor, prompts)
    points = np.concatenate([points[labels == FOREGROUND], corners])
    if len(points) or (mask is not None and mask.any()):
        predictor.zoom(box_around(points, mask))


def mask_records(masks: np.ndarray, scores: np.ndarray) -> list[Record]:
    """A dictionary a mask, which can go to JSON, with fields as the mask generator's records have.

    Args:
        masks: (n, H0, W0) bool.
        scores: (n,) predicted IoU.

    Returns:
        "segmentation" as COCO run lengths; "area" in pixels; "bbox": [left, top, width, height],
        where width and height are one less than the number of columns and rows; "predicted_iou".
    """
    rows = zip(masks, masks_to_rles(masks), masks_to_boxes(masks), scores, strict=True)
    return [
        {
            "segmentation": rle_to_coco(rle),
            "area": int(mask.sum()),
            "bbox": [int(left), int(top), int(right - left), int(bottom - top)],
            "predicted_iou": float(score),
        }
        for mask, rle, (left, top, right, bottom), score in rows
    ]
