"""Mask logits of the model brought back to pixels of the image, filtered, and without duplicates.

The image processor's second half. PyTorch tensors come back where PyTorch tensors are given, numpy
arrays otherwise; PyTorch is imported only in the first case.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np

from .image_arrays import to_numpy
from .image_resizer import InputGeometry, SizeHW
from .mask_ops import (
    RLE,
    nms,
    remove_small_regions,
    rle_to_mask,
    rle_with_list,
)
from .mask_upscaling import MaskUpscaler, finish_masks, upscaling_matrix


class OriginalSizeMasks(list[Any]):
    """What `post_process_masks` returns: one entry an image, at the size of the original image.

    The mask-generation pipeline of transformers passes the result in again when holes are to be
    filled. From its type it is known that nothing is left to be resized.
    """


class MaskPostprocessingMixin:
    """Post-processing of masks for an image processor that knows how it resizes images."""

    def geometry(self, **kwargs: Any) -> InputGeometry:
        """How images and low-resolution masks are placed in the model input."""
        raise NotImplementedError

    def post_process_masks(
        self,
        masks: Any,
        original_sizes: Any,
        reshaped_input_sizes: Any = None,
        mask_threshold: float = 0.0,
        binarize: bool = True,
        pad_size: Any = None,
        max_hole_area: float = 0,
        max_sprinkle_area: float = 0,
    ) -> OriginalSizeMasks:
        """Masks without padding, each at the size of its original image.

        Logits are interpolated bilinearly to the padded model input, cut, and interpolated to the
        original size, as in Meta's code, but in one step: the product of both interpolations.

        Args:
            masks: (N, ..., H', W') logits, such as the model's `pred_masks`, or a list of N arrays
                or tensors (..., H', W').
            original_sizes: N sizes (H0, W0) of the images, as the processor returned them.
            reshaped_input_sizes: N sizes of the images in the model input, without padding. By
                default computed from the original sizes.
            mask_threshold: Logits above it belong to the mask.
            binarize: If False the logits are returned.
            pad_size: Size of the padded model input, `{"height": ..., "width": ...}`; by default
                the processor's.
            max_hole_area: Holes of up to so many pixels of the original image are filled: their
                logits are mirrored at the threshold.
            max_sprinkle_area: Islands of up to so many pixels are removed likewise. The largest
                island always stays.

        Returns:
            A list of N arrays or tensors (..., H0, W0), bool, or float32 without `binarize`. The
            values of float32 tensors on a processor are made when they are first used.

        Raises:
            ValueError: The numbers of masks and sizes differ.
        """
        original_sizes = _sizes(original_sizes)
        if reshaped_input_sizes is None:
            resizers = [self.geometry().image_resizer(size) for size in original_sizes]
            reshaped_input_sizes = [resizer.rescaled_size for resizer in resizers]
        reshaped_input_sizes = _sizes(reshaped_input_sizes)
        if not len(masks) == len(original_sizes) == len(reshaped_input_sizes):
            raise ValueError(
                "Expected one entry an image in masks, original_sizes and reshaped_input_sizes, "
                f"got {len(masks)}, {len(original_sizes)} and {len(reshaped_input_sizes)}."
            )
        processed = OriginalSizeMasks()
        for logits, original, reshaped in zip(
            masks, original_sizes, reshaped_input_sizes, strict=True
        ):
            if not isinstance(masks, OriginalSizeMasks):
                padded = self._input_size(logits, pad_size)
                logits = _at_original_size(logits, padded, reshaped, original)
            if max_hole_area > 0 or max_sprinkle_area > 0:
                logits = _without_small_regions(
                    logits, mask_threshold, max_hole_area, max_sprinkle_area
                )
            processed.append(logits > mask_threshold if binarize else logits)
        return processed

    def _input_size(self, mask_logits: Any, pad_size: Any) -> SizeHW:
        if pad_size is not None:
            return pad_size["height"], pad_size["width"]
        return self.geometry().input_size_of_masks(tuple(mask_logits.shape[-2:]))

    def filter_masks(
        self,
        masks: Any,
        iou_scores: Any,
        original_size: Any,
        cropped_box_image: Any,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        mask_threshold: float = 0,
        stability_score_offset: float = 1,
    ) -> tuple[list[RLE], Any, Any]:
        """The good masks of one crop, in the frame of the whole image.

        Masks are dropped if their predicted quality is low, if they change much with the
        threshold, or if an edge of the crop cuts them.

        Args:
            masks: (P, K, h, w) logits at the size of the crop.
            iou_scores: (P, K) predicted qualities.
            original_size: Size (H0, W0) of the whole image.
            cropped_box_image: Left, top, right, bottom of the crop in the image.
            pred_iou_thresh: Qualities have to be above it; 0 lets all pass.
            stability_score_thresh: Stabilities have to be above it; 0 lets all pass.
            mask_threshold: Logits above it belong to the mask.
            stability_score_offset: How far the threshold is moved to see whether the mask changes.

        Returns:
            For the m masks that are left: uncompressed run lengths of (H0, W0), qualities (m,),
            and boxes (m, 4) int64 with inclusive right and bottom. The run lengths are arrays,
            since the pipeline walks through lists, one number after another.

        Raises:
            ValueError: Masks and qualities differ in number.
        """
        scores = to_numpy(iou_scores).reshape(-1)
        count = int(np.prod(masks.shape[:-2]))
        if count != len(scores):
            raise ValueError(
                f"Expected one score for each mask, got {len(scores)} scores, {count} masks."
            )
        crop_box = np.array([int(edge) for edge in cropped_box_image])
        size_hw = (int(original_size[0]), int(original_size[1]))
        kept = np.arange(count)
        if pred_iou_thresh > 0:
            kept = np.flatnonzero(scores > pred_iou_thresh)
        if hasattr(masks, "low_resolution"):  # full-size logits that do not exist yet
            logits, upscaler = masks.low_resolution, masks.upscaler
        else:
            logits, upscaler = masks, MaskUpscaler(*[tuple(masks.shape[-2:])] * 4)
        finished = finish_masks(
            to_numpy(logits.reshape(count, *logits.shape[-2:])[kept]),
            upscaler,
            mask_threshold,
            stability_score_offset,
            lambda stability: stability_score_thresh <= 0 or stability > stability_score_thresh,
            crop_box,
            size_hw,
        )
        scores = scores[kept[finished.indices]]
        return finished.rles, _like(scores, iou_scores), _like(finished.boxes, iou_scores)

    def post_process_for_mask_generation(
        self, all_masks: Sequence[RLE], all_scores: Any, all_boxes: Any, crops_nms_thresh: float
    ) -> tuple[list[np.ndarray], Any, list[RLE], Any]:
        """Masks of all crops without duplicates, the best first.

        Args:
            all_masks: m run lengths, as from `filter_masks`.
            all_scores: (m,) qualities.
            all_boxes: (m, 4) boxes.
            crops_nms_thresh: Of two masks whose boxes overlap by more than this IoU, the better
                one is kept.

        Returns:
            Masks as (H0, W0) bool arrays, scores, run lengths and boxes of those that are left.
        """
        kept = nms(to_numpy(all_boxes), to_numpy(all_scores), crops_nms_thresh)
        rles = [all_masks[index] for index in kept]
        masks, in_lists = [rle_to_mask(rle) for rle in rles], [rle_with_list(rle) for rle in rles]
        return masks, all_scores[kept], in_lists, all_boxes[kept]


def _sizes(sizes: Any) -> list[SizeHW]:
    return [(int(height), int(width)) for height, width in to_numpy(sizes).tolist()]


def _is_tensor(array: Any) -> bool:
    return hasattr(array, "detach")


def _like(array: np.ndarray, example: Any) -> Any:
    """The array as a PyTorch tensor on the example's device, if the example is one."""
    if not _is_tensor(example):
        return array
    torch = import_module("torch")  # Transformers takes an import statement for a requirement
    return torch.from_numpy(array).to(example.device)


def _at_original_size(
    mask_logits: Any, padded_hw: SizeHW, reshaped_hw: SizeHW, original_hw: SizeHW
) -> Any:
    """Logits (..., H', W') interpolated to the padded input, cut, and interpolated to (H0, W0).

    A tensor on an accelerator is resized there.
    """
    if _is_tensor(mask_logits) and mask_logits.device.type != "cpu":
        lengths = zip(mask_logits.shape[-2:], padded_hw, reshaped_hw, original_hw, strict=True)
        matrix_y, matrix_x = (_like(upscaling_matrix(*axis), mask_logits) for axis in lengths)
        return matrix_y @ mask_logits.detach().float() @ matrix_x.T
    *leading, height, width = mask_logits.shape
    low_resolution = np.asarray(to_numpy(mask_logits), np.float32)
    upscaler = MaskUpscaler((height, width), padded_hw, reshaped_hw, original_hw)
    if _is_tensor(mask_logits):
        from .full_size_logits import FullSizeLogits

        return FullSizeLogits(low_resolution, upscaler)
    upscaled = upscaler.whole(low_resolution.reshape(-1, height, width))
    return upscaled.reshape(*leading, *original_hw)


def _without_small_regions(
    mask_logits: Any, mask_threshold: float, max_hole_area: float, max_sprinkle_area: float
) -> Any:
    """Logits (..., H, W) whose masks have neither small holes nor small islands.

    Where a pixel changes sides its logit is mirrored at the threshold, so it stays as certain as
    it was and the mask's stability is not lowered.
    """
    cleaned_logits = to_numpy(mask_logits).copy()
    for index in np.ndindex(cleaned_logits.shape[:-2]):
        mask = cleaned_logits[index] > mask_threshold
        cleaned = mask
        for max_area, mode in ((max_hole_area, "holes"), (max_sprinkle_area, "islands")):
            if max_area > 0:
                cleaned, _ = remove_small_regions(cleaned, max_area + 1, mode)
        distance = np.abs(cleaned_logits[index] - mask_threshold)
        distance = np.where(cleaned, np.maximum(distance, 1e-6), -distance)
        changed = cleaned != mask
        cleaned_logits[index][changed] = mask_threshold + distance[changed]
    return _like(cleaned_logits, mask_logits)
