"""Everything in an image: a grid of clicks, of whose masks the good and different ones remain.

The data flows through four stages, each with its own function: propose (points to low-resolution
logits, kept by predicted quality), finish (logits to full-size masks, kept by stability), a crop
(its duplicates removed), the image (cut masks merged, duplicates between crops removed).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..model.configuration_segment_anything import GENERATOR_THRESHOLDS, SegmentAnythingModelConfig
from ..model.image_arrays import ImageSource
from ..model.image_processing_segment_anything import SegmentAnythingImageProcessor
from ..model.mask_ops import (
    MAX_POINTS_PER_BATCH,
    RLE,
    box_areas,
    check_crop_layers,
    crop_boxes,
    nms,
    point_grids,
    require_scipy,
    rle_area,
    rle_to_coco,
    rle_to_mask,
    rle_with_list,
)
from ..model.mask_upscaling import finish_masks
from .colours import Preprocessing
from .crop_seams import by_cut, merge_cut_masks
from .encoded_image import EncodedImage, PreparedImage, fitted
from .found_masks import FoundMasks
from .generator_options import GENERATOR_OPTIONS
from .look_ahead import in_groups, one_ahead
from .predictor import SAMPredictor

Record = dict[str, Any]

_Image = ImageSource | EncodedImage
# An image's pixels, where they are known, and the image as the model takes it, or encoded.
_Prepared = tuple[np.ndarray | None, PreparedImage | EncodedImage]
_Encoded = tuple[np.ndarray | None, EncodedImage]

# What `output_mode` can be, and how each makes a "segmentation" of uncompressed run lengths.
_OUTPUT_MODES: dict[str, Callable[[RLE], Any]] = {
    "binary_mask": rle_to_mask,
    "uncompressed_rle": rle_with_list,
    "coco_rle": rle_to_coco,
}


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
        merge_crop_seams: Whether to put together masks that the edges of crops cut, where those
            of neighbouring crops continue each other, rather than to drop them. Finds objects
            that are too small to be seen in the whole image and that reach over a crop's edge.

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
        merge_crop_seams: bool = False,
    ) -> None:
        """Checks the parameters and lays out the points."""
        _check_at_least(1, points_per_batch=points_per_batch)
        if points_per_batch > MAX_POINTS_PER_BATCH:
            raise ValueError(
                f"points_per_batch must be at most {MAX_POINTS_PER_BATCH}, got {points_per_batch}."
            )
        _check_at_least(1, crop_n_points_downscale_factor=crop_n_points_downscale_factor)
        _check_at_least(0, crop_n_layers=crop_n_layers, min_mask_region_area=min_mask_region_area)
        _check_at_least(0, stability_score_offset=stability_score_offset)
        _check_numbers(
            pred_iou_thresh=pred_iou_thresh,
            stability_score_thresh=stability_score_thresh,
            box_nms_thresh=box_nms_thresh,
            crop_nms_thresh=crop_nms_thresh,
        )
        check_crop_layers(crop_n_layers)
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
        self.merge_crop_seams = merge_crop_seams
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

    def generate(self, image: _Image, progress: bool = False) -> list[Record]:
        """Records of all masks found in an image, the best first.

        An image that is to be clicked, too, need not be encoded twice:

            encoded = generator.predictor.encode_image(image)
            records = generator.generate(encoded)
            predictor.set_encoded(encoded)

        Args:
            image: As for `SAMPredictor.set_image`; or encoded, as for `SAMPredictor.set_encoded`.
            progress: Whether to show a bar that counts points.

        Returns:
            One dictionary a mask. "segmentation": the mask at the image's size in the form of
            `output_mode`; "area" in pixels; "bbox": [left, top, width, height], where width and
            height are one less than the number of columns and rows; "predicted_iou";
            "point_coords": [[x, y]], the click; "stability_score"; "crop_box": [left, top, width,
            height] of the crop that the mask was found in. With crops the masks of the smallest
            crops come first; otherwise they are ordered by predicted IoU. Of a mask that was
            merged from pieces, area and box are those of the whole, the two scores the lowest of
            the pieces' scores, the click is that of the largest piece, and the crop the box
            around the pieces' crops.

        Several threads may call it at once.

        Raises:
            FloatingPointError: If the model answers with NaN: its weights are damaged.
            TypeError: If the image is not one.
            ValueError: If its shape, channels or values do not fit; or there are crops, and of an
                encoded image the pixels are not known.
        """
        [encoded] = self._encoded([self._prepared(image)])
        return self._records(*encoded, progress)

    def generate_batch(
        self,
        images: Iterable[_Image],
        progress: bool = False,
        images_per_batch: int = 1,
    ) -> Iterator[list[Record]]:
        """The records of each image, one image after the other, as they are asked for.

        While masks of some images are made, a thread takes the next ones from `images`, and
        resizes them. On a GPU it encodes them too. No more than `images_per_batch` images are
        taken ahead. An error of an image is raised when its records are asked for.

        Args:
            images: Images of any sizes; they may be loaded while this runs.
            progress: Whether to show a bar that counts images.
            images_per_batch: Images that the encoder gets at once. On a GPU more are faster, if
                the model is small; they need more memory.

        Returns:
            An iterator over what `generate` returns. Closing it ends the thread.

        Raises:
            ValueError: If `images` is one image, or `images_per_batch` is below 1.
        """
        if isinstance(images, np.ndarray) and images.ndim != 4:
            raise ValueError(
                "generate_batch takes a list of images or an array (N, H, W, C), got an array "
                f"of shape {images.shape}. For one image there is generate."
            )
        _check_at_least(1, images_per_batch=images_per_batch)
        return self._records_of_groups(images, images_per_batch, progress)

    def _records_of_groups(
        self, images: Iterable[_Image], length: int, progress: bool
    ) -> Iterator[list[Record]]:
        """The records of each image; what comes next is made in a thread meanwhile."""
        groups = in_groups(images, self._prepared, length)
        aside = self.predictor.backend.encodes_aside
        ahead: Generator[Any] = one_ahead(map(self._encoded, groups) if aside else groups)
        encoded = ahead if aside else map(self._encoded, ahead)
        total = len(images) if isinstance(images, Sized) else None
        with (
            closing(ahead),
            tqdm(total=total, desc="Images", unit="image", disable=not progress) as bar,
        ):
            for image in chain.from_iterable(encoded):
                records = self._records(*image)
                bar.update()
                yield records

    def _prepared(self, image: _Image) -> _Prepared:
        """An image's pixels, and as the model takes it; encoded where it is so already."""
        if not isinstance(image, EncodedImage):
            pixels = self.predictor.read_image(image)
            return pixels, self.predictor.prepare(pixels)
        if self.crop_n_layers and image.pixels is None:
            raise ValueError(
                "Crops are encoded one by one, and of this image only the embedding is known. Give "
                "the image itself, or what encode_image(image) returns, or set crop_n_layers=0."
            )
        return image.pixels, fitted(image, self.predictor.backend)

    def _encoded(self, images: list[_Prepared]) -> list[_Encoded]:
        """The pixels of some images, and as prompts can be asked about them."""
        new = [image for _, image in images if isinstance(image, PreparedImage)]
        made = iter(self.predictor.encode(new) if new else ())
        return [
            (pixels, image if isinstance(image, EncodedImage) else next(made))
            for pixels, image in images
        ]

    def _records(
        self, pixels: np.ndarray | None, encoded: EncodedImage, progress: bool = False
    ) -> list[Record]:
        masks = self._masks_of(pixels, encoded, progress)
        if self.min_mask_region_area > 0:
            nms_thresh = max(self.box_nms_thresh, self.crop_nms_thresh)
            masks = masks.without_small_regions(self.min_mask_region_area, nms_thresh)
        return [self._record(*row) for row in zip(*masks, strict=True)]

    def _masks_of(
        self, pixels: np.ndarray | None, encoded: EncodedImage, progress: bool
    ) -> FoundMasks:
        """The image's masks without duplicates, with crops those of the smallest first."""
        size_hw = encoded.resizer.src_size
        boxes, layers = crop_boxes(size_hw, self.crop_n_layers, self.crop_overlap_ratio)
        n_points = sum(len(self.point_grids[layer]) for layer in layers)
        found: dict[int, list[FoundMasks]] = {}
        with tqdm(total=n_points, desc="Points", unit="point", disable=not progress) as bar:
            for box, layer in zip(boxes, layers.tolist(), strict=True):
                if layer > 0 and pixels is not None:  # the image itself is encoded already
                    left, top, right, bottom = box
                    crop = self.predictor.prepare(pixels[top:bottom, left:right])
                    [encoded] = self.predictor.encode([crop])
                masks = self._masks_of_crop(encoded, box, size_hw, self.point_grids[layer], bar)
                found.setdefault(layer, []).append(masks)
        masks = FoundMasks.joined(
            merge_cut_masks(FoundMasks.joined(of_layer), size_hw) for of_layer in found.values()
        )
        if len(boxes) == 1:
            return masks
        smaller_first = (1 / box_areas(masks.crop_boxes)).astype(np.float32)
        return masks.take(nms(masks.boxes, smaller_first, self.crop_nms_thresh))

    def _masks_of_crop(
        self,
        crop: EncodedImage,
        crop_box: np.ndarray,
        size_hw: tuple[int, int],
        grid: np.ndarray,
        bar: tqdm,
    ) -> FoundMasks:
        """The masks of one crop without duplicates, by falling score, in pixels of the image."""
        left, top, right, bottom = crop_box
        points = grid * (right - left, bottom - top)
        parts = []
        predictor = self.predictor.sibling()  # other threads look at other crops
        predictor.look_at(crop)
        while len(points):
            waiting = len(points)
            batch, points = self._next_batch(points)
            found = self._masks_of_batch(predictor, batch, crop_box, size_hw)
            parts.append(found)
            if self.skip_covered_points:
                whole, _ = by_cut(found, size_hw)
                points = points[~whole.cover(points + crop_box[:2])]
            bar.update(waiting - len(points))
        masks = FoundMasks.joined(parts)
        return FoundMasks.joined(  # a cut mask suppresses no whole one
            some.take(nms(some.boxes, some.iou_scores, self.box_nms_thresh))
            for some in by_cut(masks, size_hw)
        )

    def _next_batch(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The points that the model gets next, and those that are left."""
        count = self.points_per_batch
        if not self.skip_covered_points:
            return points[:count], points[count:]
        chosen = np.unique(np.linspace(0, len(points) - 1, count).round().astype(int))
        return points[chosen], np.delete(points, chosen, axis=0)

    def _masks_of_batch(
        self,
        predictor: SAMPredictor,
        points: np.ndarray,
        crop_box: np.ndarray,
        size_hw: tuple[int, int],
    ) -> FoundMasks:
        """The good and stable masks of some clicks, in pixels of the image."""
        threshold = self.pred_iou_thresh if self.pred_iou_thresh > 0 else -np.inf
        good = predictor.predict_above(points[:, None], threshold)
        least = self.stability_score_thresh
        finished = finish_masks(
            good.mask_logits,
            predictor.mask_upscaler(),
            predictor.config.mask_threshold,
            self.stability_score_offset,
            lambda stability: least <= 0 or stability >= least,
            crop_box,
            size_hw,
            keep_cut=self.merge_crop_seams,
        )
        count = len(finished.rles)
        return FoundMasks(
            np.fromiter(finished.rles, object, count),
            finished.boxes,
            good.iou_scores[finished.indices],
            finished.stability_scores,
            points[good.prompts[finished.indices]] + crop_box[:2],
            np.tile(crop_box, (count, 1)),
        )

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


def usual_options(config: SegmentAnythingModelConfig) -> dict[str, Any]:
    """What the generator is told by default, with the thresholds that suit the model.

    Args:
        config: The model's configuration.
    """
    usual = {option.name: option.default for option in GENERATOR_OPTIONS}
    return {**usual, **GENERATOR_THRESHOLDS.get(config.name, {})}


def _as_xywh(box_xyxy: np.ndarray) -> list[int]:
    left, top, right, bottom = box_xyxy.tolist()
    return [left, top, right - left, bottom - top]


def _check_at_least(lowest: int, **values: float) -> None:
    for name, value in values.items():
        if not value >= lowest:
            raise ValueError(f"{name} must be at least {lowest}, got {value}.")


def _check_numbers(**values: float) -> None:
    for name, value in values.items():
        if np.isnan(value):
            raise ValueError(f"{name} must be a number, got {value}.")


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
