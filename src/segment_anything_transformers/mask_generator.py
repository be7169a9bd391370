"""Everything in an image: a grid of clicks, of whose masks the good and different ones remain.

The data flows through four stages, each with its own function: propose (points to low-resolution
logits, kept by predicted quality), finish (logits to full-size masks, kept by stability), a crop
(its duplicates removed), the image (duplicates between crops removed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from .image_processing_segment_anything import SegmentAnythingImageProcessor
from .mask_ops import (
    RLE,
    box_areas,
    crop_boxes,
    masks_to_boxes,
    masks_to_rles,
    nms,
    point_grids,
    remove_small_regions,
    require_scipy,
    rle_area,
    rle_to_coco,
    rle_to_mask,
)
from .mask_upscaling import finish_masks
from .predictor import Preprocessing, SAMPredictor

Record = dict[str, Any]

# What `output_mode` can be, and how each makes a "segmentation" of uncompressed run lengths.
_OUTPUT_MODES: dict[str, Callable[[RLE], Any]] = {
    "binary_mask": rle_to_mask,
    "uncompressed_rle": lambda rle: rle,
    "coco_rle": rle_to_coco,
}


class _Masks(NamedTuple):
    """Finished masks: columns of equal length n."""

    rles: np.ndarray  # (n,) of dictionaries, the size of the whole image
    boxes: np.ndarray  # (n, 4) int64
    iou_scores: np.ndarray  # (n,) float32
    stability_scores: np.ndarray  # (n,) float32
    points: np.ndarray  # (n, 2) float64
    crop_boxes: np.ndarray  # (n, 4) int64

    @classmethod
    def none(cls) -> Self:
        """Columns of length 0."""
        empty = np.zeros(0, np.float32)
        boxes = np.zeros((0, 4), np.int64)
        return cls(np.zeros(0, object), boxes, empty, empty, np.zeros((0, 2)), boxes)

    @classmethod
    def joined(cls, parts: Iterable[_Masks]) -> Self:
        """All parts, one after the other."""
        return cls(*map(np.concatenate, zip(cls.none(), *parts, strict=True)))

    def take(self, indices: np.ndarray) -> _Masks:
        """Some of the masks, in the order of the indices."""
        return _Masks(*(column[indices] for column in self))


class SAMAutomaticMaskGenerator:
    """Masks of everything in an image, without prompts.

    A regular grid of points is clicked. Masks that the model itself rates low, that change with
    the threshold, or that repeat a better mask are dropped. Parameters, defaults and records are
    those of Meta's class of that name; with `output_mode="coco_rle"` a record can go to JSON.

    Args:
        model: A `SegmentAnythingModel` of either framework.
        points_per_side: Points along each side of the image; None with `point_grids`.
        points_per_batch: Points that the model gets at once. More need more memory.
        pred_iou_thresh: Masks need a predicted IoU above it; 0 keeps all.
        stability_score_thresh: Masks need at least this stability; 0 keeps all.
        stability_score_offset: How far the threshold moves, in logits, to measure stability: the
            IoU of the masks at both ends.
        box_nms_thresh: Of two masks in one crop whose boxes have a larger IoU, the one with the
            lower predicted IoU goes.
        crop_n_layers: Layers of crops that are searched besides the whole image; layer i has
            2**i crops along each side. Finds smaller objects, for the time of 4**i images.
        crop_nms_thresh: As `box_nms_thresh` between crops; the mask of the smaller crop stays.
        crop_overlap_ratio: Overlap of the first layer's crops, as a share of the shorter side.
        crop_n_points_downscale_factor: Layer i has the points of the whole image, divided by this
            factor i times, along each side.
        point_grids: Instead of `points_per_side`, the points themselves: an (n, 2) array with x
            and y in [0, 1] for the image and for each layer of crops.
        min_mask_region_area: If above 0, holes and islands of fewer pixels are removed, and
            duplicates that this makes (needs scipy).
        output_mode: "binary_mask", "uncompressed_rle" or "coco_rle", the form of the masks.
        preprocessing: As in `SAMPredictor`.
        dtype: As in `SAMPredictor`.
        skip_covered_points: Whether to leave out points that lie in a mask found already. Points
            far from each other come first. Takes a fraction of the time where objects are large,
            but of an object that was found as a whole, parts may be missed.

    Raises:
        ImportError: If `min_mask_region_area` is above 0 and scipy is missing.
        TypeError: If `model` is not a model.
        ValueError: If a parameter has an impossible value.

    Source: arXiv:2304.02643, appendix B, "Automatic mask generation".
    """

    def __init__(
        self,
        model: Any,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = "binary_mask",
        preprocessing: Preprocessing | SegmentAnythingImageProcessor | None = None,
        dtype: Any = None,
        skip_covered_points: bool = False,
    ) -> None:
        """Checks the parameters and lays out the points."""
        _check_at_least(1, points_per_batch=points_per_batch)
        _check_at_least(1, crop_n_points_downscale_factor=crop_n_points_downscale_factor)
        _check_at_least(0, crop_n_layers=crop_n_layers, min_mask_region_area=min_mask_region_area)
        _check_at_least(0, stability_score_offset=stability_score_offset)
        if not 0 <= crop_overlap_ratio < 1:
            raise ValueError(f"crop_overlap_ratio must lie in [0, 1), got {crop_overlap_ratio}.")
        if output_mode not in _OUTPUT_MODES:
            raise ValueError(
                f"output_mode must be one of {', '.join(_OUTPUT_MODES)}, got {output_mode!r}."
            )
        if min_mask_region_area > 0:
            require_scipy()  # now, rather than after all the work

        self.predictor = SAMPredictor(model, preprocessing, dtype)
        self.skip_covered_points = skip_covered_points
        self.point_grids = _grids(
            points_per_side, point_grids, crop_n_layers, crop_n_points_downscale_factor
        )
        self.points_per_batch = points_per_batch
        self.pred_iou_thresh = pred_iou_thresh
        self.stability_score_thresh = stability_score_thresh
        self.stability_score_offset = stability_score_offset
        self.box_nms_thresh = box_nms_thresh
        self.crop_n_layers = crop_n_layers
        self.crop_nms_thresh = crop_nms_thresh
        self.crop_overlap_ratio = crop_overlap_ratio
        self.min_mask_region_area = min_mask_region_area
        self.output_mode = output_mode

    def generate(self, image: np.ndarray | Image.Image, progress: bool = False) -> list[Record]:
        """Records of all masks found in an image, the best first.

        Args:
            image: As for `SAMPredictor.set_image`.
            progress: Whether to show a bar that counts points.

        Returns:
            One dictionary a mask. "segmentation": the mask at the image's size in the form of
            `output_mode`; "area" in pixels; "bbox": [left, top, width, height], where width and
            height are one less than the number of columns and rows; "predicted_iou";
            "point_coords": [[x, y]], the click; "stability_score"; "crop_box": [left, top, width,
            height] of the crop that the mask was found in. With crops the masks of the smallest
            crops come first; otherwise they are ordered by predicted IoU.

        Raises:
            TypeError: If the image is not one.
            ValueError: If its shape, channels or values do not fit.
        """
        masks = self._masks_of(self.predictor.read_image(image), progress)
        if self.min_mask_region_area > 0:
            masks = self._without_small_regions(masks)
        return [self._record(*row) for row in zip(*masks, strict=True)]

    def generate_batch(
        self, images: Iterable[np.ndarray | Image.Image], progress: bool = False
    ) -> Iterator[list[Record]]:
        """The records of each image, one image after the other, as they are asked for.

        Args:
            images: Images of any sizes; they may be loaded while this runs.
            progress: Whether to show a bar that counts images.

        Returns:
            An iterator over what `generate` returns.

        Raises:
            ValueError: If `images` is one image.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise ValueError(
                "generate_batch takes a list of images or an array (N, H, W, C), got an array "
                f"of shape {images.shape}. For one image there is generate."
            )
        counted = tqdm(images, desc="Images", unit="image", disable=not progress)
        return (self.generate(image) for image in counted)

    def _masks_of(self, image: np.ndarray, progress: bool) -> _Masks:
        """The image's masks without duplicates, with crops those of the smallest first."""
        boxes, layers = crop_boxes(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        n_points = sum(len(self.point_grids[layer]) for layer in layers)
        with tqdm(total=n_points, desc="Points", unit="point", disable=not progress) as bar:
            masks = _Masks.joined(
                self._masks_of_crop(image, box, self.point_grids[layer], bar)
                for box, layer in zip(boxes, layers, strict=True)
            )
        if len(boxes) == 1:
            return masks
        smaller_first = (1 / box_areas(masks.crop_boxes)).astype(np.float32)
        return masks.take(nms(masks.boxes, smaller_first, self.crop_nms_thresh))

    def _masks_of_crop(
        self, image: np.ndarray, crop_box: np.ndarray, grid: np.ndarray, bar: tqdm
    ) -> _Masks:
        """The masks of one crop without duplicates, by falling score, in pixels of the image."""
        left, top, right, bottom = crop_box
        size_hw = image.shape[:2]
        points = grid * (right - left, bottom - top)
        parts = []
        try:
            self.predictor.set_pixels(image[top:bottom, left:right])
            while len(points):
                waiting = len(points)
                batch, points = self._next_batch(points)
                parts.append(self._masks_of_batch(batch, crop_box, size_hw))
                if self.skip_covered_points:
                    points = points[~_are_covered(points + crop_box[:2], parts[-1].rles)]
                bar.update(waiting - len(points))
        finally:
            self.predictor.clear_image()
        masks = _Masks.joined(parts)
        return masks.take(nms(masks.boxes, masks.iou_scores, self.box_nms_thresh))

    def _next_batch(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The points that the model gets next, and those that are left."""
        count = self.points_per_batch
        if not self.skip_covered_points:
            return points[:count], points[count:]
        chosen = np.unique(np.linspace(0, len(points) - 1, count).round().astype(int))
        return points[chosen], np.delete(points, chosen, axis=0)

    def _masks_of_batch(
        self, points: np.ndarray, crop_box: np.ndarray, size_hw: tuple[int, int]
    ) -> _Masks:
        """The good and stable masks of some clicks, in pixels of the image."""
        threshold = self.pred_iou_thresh if self.pred_iou_thresh > 0 else -np.inf
        good = self.predictor.predict_above(points[:, None], threshold)
        least = self.stability_score_thresh
        finished = finish_masks(
            good.mask_logits,
            self.predictor.mask_upscaler(),
            self.predictor.config.mask_threshold,
            self.stability_score_offset,
            lambda stability: least <= 0 or stability >= least,
            crop_box,
            size_hw,
        )
        count = len(finished.rles)
        return _Masks(
            np.fromiter(finished.rles, object, count),
            finished.boxes,
            good.iou_scores[finished.indices],
            finished.stability_scores,
            points[good.prompts[finished.indices]] + crop_box[:2],
            np.tile(crop_box, (count, 1)),
        )

    def _without_small_regions(self, masks: _Masks) -> _Masks:
        """The masks without small holes and islands, and without duplicates that this made.

        Masks that had none come first and win over those that were changed.
        """
        rles, boxes, unchanged = masks.rles.copy(), masks.boxes.copy(), np.ones(len(masks.rles))
        for index, rle in enumerate(masks.rles):
            mask, filled = remove_small_regions(
                rle_to_mask(rle), self.min_mask_region_area, "holes"
            )
            mask, cut = remove_small_regions(mask, self.min_mask_region_area, "islands")
            if filled or cut:
                unchanged[index] = 0
                boxes[index] = masks_to_boxes(mask)
                rles[index] = masks_to_rles(mask[None])[0]
        cleaned = masks._replace(rles=rles, boxes=boxes)
        return cleaned.take(nms(boxes, unchanged, max(self.box_nms_thresh, self.crop_nms_thresh)))

    def _record(
        self,
        rle: RLE,
        box: np.ndarray,
        iou_score: np.floating,
        stability_score: np.floating,
        point: np.ndarray,
        crop_box: np.ndarray,
    ) -> Record:
        return {
            "segmentation": _OUTPUT_MODES[self.output_mode](rle),
            "area": rle_area(rle),
            "bbox": _as_xywh(box),
            "predicted_iou": float(iou_score),
            "point_coords": [point.tolist()],
            "stability_score": float(stability_score),
            "crop_box": _as_xywh(crop_box),
        }


def _are_covered(points: np.ndarray, rles: np.ndarray) -> np.ndarray:
    """Which points (n, 2) in pixels of the image lie in any of the masks."""
    covered = np.zeros(len(points), bool)
    columns, rows = points.astype(np.int64).T
    for rle in rles:
        height = rle["size"][0]
        run = np.searchsorted(np.cumsum(rle["counts"]), columns * height + rows, "right")
        covered |= run % 2 == 1
    return covered


def _as_xywh(box_xyxy: np.ndarray) -> list[int]:
    left, top, right, bottom = box_xyxy.tolist()
    return [left, top, right - left, bottom - top]


def _check_at_least(lowest: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}.")


def _grids(
    points_per_side: int | None,
    given: Sequence[np.ndarray] | None,
    n_layers: int,
    downscale_factor: int,
) -> list[np.ndarray]:
    """Points in [0, 1] for the image and for each layer of crops."""
    if (points_per_side is None) == (given is None):
        raise ValueError(
            "Exactly one of points_per_side and point_grids is needed; with point_grids pass "
            "points_per_side=None."
        )
    if points_per_side is not None:
        return point_grids(points_per_side, n_layers, downscale_factor)
    grids = [np.asarray(grid, np.float64) for grid in given or ()]
    if len(grids) <= n_layers:
        raise ValueError(
            f"point_grids needs one grid for the image and one for each of {n_layers} layers of "
            f"crops, got {len(grids)}."
        )
    for grid in grids:
        if grid.ndim != 2 or grid.shape[1] != 2 or not ((grid >= 0) & (grid <= 1)).all():
            raise ValueError(
                f"Each of point_grids must have shape (n, 2) and values in [0, 1], got "
                f"{grid.shape} and values from {np.min(grid, initial=np.inf):g} to "
                f"{np.max(grid, initial=-np.inf):g}."
            )
    return grids
