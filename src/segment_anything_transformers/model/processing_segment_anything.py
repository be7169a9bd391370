"""Images together with their prompts, as the model takes them."""

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from transformers import BatchFeature
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin

from .configuration_segment_anything import PADDING
from .image_arrays import to_numpy
from .image_processing_segment_anything import (
    SegmentAnythingImageProcessor,
    SegmentAnythingImageProcessorKwargs,
)
from .image_resizer import ImageResizer, InputGeometry, SizeHW
from .mask_postprocessing import OriginalSizeMasks
from .prompt_rules import check_mask_logits
from .prompt_sets import (
    BOXES,
    LABELS,
    MASKS,
    POINTS,
    PromptSets,
    batched,
    check_coordinates,
    check_counts,
    match_labels,
    read_prompt_sets,
)
from .remote_code import CarriesCode


class SegmentAnythingProcessorKwargs(ProcessingKwargs, total=False):
    """Options of a call: those of the image processor, on their own or in one dictionary.

    Attributes:
        images_kwargs: Options of the image processor, and `return_tensors`.
    """

    images_kwargs: SegmentAnythingImageProcessorKwargs  # type: ignore[misc]


class SegmentAnythingProcessor(CarriesCode, ProcessorMixin):
    """Scales images and brings their prompts along, in batches with unequal numbers of prompts.

    A prompt set is what describes one object: M1 points with labels, M2 boxes and M3 masks
    together. An image has P prompt sets, each answered on its own. Where images or prompt sets
    have fewer prompts than others, the arrays are filled up with what the model does not see:

    - points with the label -10 (and coordinates of -10);
    - boxes of four times -10;
    - masks that are NaN throughout.

    What the model answers to a missing prompt set means nothing: take each image's first masks,
    as many as it has prompt sets.

    Args:
        image_processor: The image processor, which decides on all sizes.
    """

    auto_names = ("AutoProcessor",)
    valid_processor_kwargs = SegmentAnythingProcessorKwargs  # type: ignore[assignment]

    def __init__(self, image_processor: SegmentAnythingImageProcessor) -> None:
        """Keeps the image processor."""
        super().__init__(image_processor)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Self:
        """The processor of a preset (such as "sam_vit_t"), a folder or a Hub repository.

        Repositories of transformers' own SAM are read as well.

        Args:
            pretrained_model_name_or_path: Name, folder or repository.
            kwargs: Attributes of the image processor to set differently, fields of the model's
                configuration as they are passed to the model (`input_size`, `in_channels`, `mean`,
                `std`), and download options.
        """
        # The base class would ask AutoImageProcessor, which knows another class for "sam".
        return cls(
            SegmentAnythingImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        )

    def __call__(
        self,
        images: Any = None,
        input_points: Any = None,
        input_labels: Any = None,
        input_boxes: Any = None,
        input_masks: Any = None,
        segmentation_maps: Any = None,
        original_sizes: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Images and prompts under the names that the model takes.

        Prompts are nested lists, arrays or tensors with one entry an image, in pixels of the
        original images. An entry may be None or empty. For a single image its level may be left
        out where the depth shows it.

        Args:
            images: One image or several of any sizes, see `SegmentAnythingImageProcessor`. None to
                prepare prompts alone, for image embeddings computed before.
            input_points: `[image][prompt set][point][x, y]`, or `[image][point][x, y]` for one
                prompt set an image.
            input_labels: The same without the last level: 1 foreground, 0 background, -1 not a
                point, -10 padding. By default all points are foreground.
            input_boxes: `[image][prompt set][left, top, right, bottom]`, or with one level more
                `[image][prompt set][box][...]`, for several boxes that describe one object.
            input_masks: `[image][prompt set]`, or `[image][prompt set][mask]`, of logits: (H', W')
                as the model returns them, or (H0, W0) as large as the image. A single mask serves
                every prompt set of its image.
            segmentation_maps: True masks for training, see `SegmentAnythingImageProcessor`.
            original_sizes: Sizes (H0, W0) of the images; only without `images`.
            kwargs: `return_tensors`: "pt", "np", or None for numpy arrays and lists; and options of
                the image processor for this call. They may also be in one dictionary
                `images_kwargs`, as those of other processors are.

        Returns:
            What the image processor returns, and of the prompts those that are given:
            `input_points` (N, P, M1, 2) float32 and `input_labels` (N, P, M1) int64; `input_boxes`
            (N, P, 4), or (N, P, M2, 4) with several boxes in a prompt set, float32; `input_masks`
            (N, P, M3, H', W') float32. Coordinates are in pixels of the model input.

        Raises:
            TypeError: A prompt does not consist of numbers, or a mask is boolean.
            ValueError: Shapes or numbers do not fit, a coordinate is not finite, a label is
                unknown, or a prompt cannot be meant, see `prompt_rules.py`. The message names the
                image.
        """
        options = self._images_kwargs(**kwargs)
        return_tensors = options.pop("return_tensors", None)
        geometry = self.image_processor.geometry(**options)
        if images is None:
            inputs = _inputs_without_images(original_sizes, segmentation_maps, geometry)
        elif original_sizes is None:
            inputs = self.image_processor(images, segmentation_maps, **options)
        else:
            raise ValueError("Give either images or original_sizes: images have their own sizes.")
        n_images = len(inputs["original_sizes"])
        prompts = _batched_prompts(
            read_prompt_sets(input_points, POINTS, n_images),
            read_prompt_sets(input_labels, LABELS, n_images),
            read_prompt_sets(input_boxes, BOXES, n_images),
            read_prompt_sets(input_masks, MASKS, n_images),
            inputs["original_sizes"],
            geometry,
        )
        return BatchFeature({**inputs, **prompts}, tensor_type=return_tensors)

    def _images_kwargs(self, **kwargs: Any) -> dict[str, Any]:
        """Options of the image processor, wherever they stand; it refuses those it does not know.

        The base class would leave these out with a warning.
        """
        known = {
            *ProcessingKwargs.__annotations__,
            *self.image_processor.valid_kwargs.__annotations__,
        }
        unknown = {name: kwargs.pop(name) for name in kwargs.keys() - known - {"common_kwargs"}}
        return {**self._merge_kwargs(**kwargs)["images_kwargs"], **unknown}

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call with images alone returns."""
        sizes = ["original_sizes", "reshaped_input_sizes"]
        return [*self.image_processor.model_input_names, *sizes]

    def post_process_masks(self, *args: Any, **kwargs: Any) -> OriginalSizeMasks:
        """Masks at the size of the original images, see `SegmentAnythingImageProcessor`."""
        return self.image_processor.post_process_masks(*args, **kwargs)


def _inputs_without_images(
    original_sizes: Any, segmentation_maps: Any, geometry: InputGeometry
) -> dict[str, Any]:
    """What the image processor would say about images that are not given."""
    if original_sizes is None:
        raise ValueError("Expected images, or original_sizes to prepare prompts alone, got none.")
    if segmentation_maps is not None:
        raise ValueError("segmentation_maps need their images, got none.")
    sizes = [(int(height), int(width)) for height, width in to_numpy(original_sizes)]
    return {
        "original_sizes": sizes,
        "reshaped_input_sizes": [geometry.image_resizer(size).rescaled_size for size in sizes],
    }


def _batched_prompts(
    points: PromptSets,
    labels: PromptSets,
    boxes: PromptSets,
    masks: PromptSets,
    original_sizes: Sequence[SizeHW],
    geometry: InputGeometry,
) -> dict[str, np.ndarray]:
    """The given prompts in pixels of the model input, each kind as one array."""
    labels = match_labels(labels, points)
    check_coordinates(points, labels, boxes, original_sizes)
    counts = check_counts(points, boxes, masks)
    resizers = [geometry.image_resizer(size) for size in original_sizes]
    points_in_input = [
        [resizer.scale_points(point_array) for point_array in sets]
        for sets, resizer in zip(points, resizers, strict=True)
    ]
    boxes_in_input = [
        [_scaled_boxes(box_array, resizer) for box_array in sets]
        for sets, resizer in zip(boxes, resizers, strict=True)
    ]
    padded_size = geometry.padded_size([resizer.rescaled_size for resizer in resizers])
    mask_prompts = [
        [_mask_logits(mask_array, resizer, padded_size, geometry) for mask_array in sets]
        for sets, resizer in zip(masks, resizers, strict=True)
    ]
    mask_prompts = [
        sets * count if len(sets) == 1 else sets
        for sets, count in zip(mask_prompts, counts, strict=True)
    ]
    arrays = {
        POINTS.name: batched(points_in_input, counts, PADDING),
        LABELS.name: batched(labels, counts, PADDING, np.int64),
        BOXES.name: _without_single_axis(batched(boxes_in_input, counts, PADDING)),
        MASKS.name: batched(mask_prompts, counts, np.nan),
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _scaled_boxes(boxes: np.ndarray, resizer: ImageResizer) -> np.ndarray:
    """Boxes in the model input; padding that the user brought along stays padding."""
    is_padding = (boxes == PADDING).all(axis=-1, keepdims=True)
    return np.where(is_padding, np.float32(PADDING), resizer.scale_boxes(boxes))


def _without_single_axis(boxes: np.ndarray | None) -> np.ndarray | None:
    """(N, P, 4) where every prompt set has one box, as transformers' SAM has it."""
    return boxes[:, :, 0] if boxes is not None and boxes.shape[2] == 1 else boxes


def _mask_logits(
    masks: np.ndarray, resizer: ImageResizer, padded_size: SizeHW, geometry: InputGeometry
) -> np.ndarray:
    """Masks (M3, H', W') as they are, and masks (M3, H0, W0) scaled and padded to that size."""
    check_mask_logits(MASKS.name, masks)
    mask_size = geometry.padded_mask_size(padded_size)
    if masks.shape[-2:] == mask_size or not len(masks):
        return masks
    if masks.shape[-2:] != resizer.src_size:
        raise ValueError(
            f"input_masks: expected logits of size {mask_size}, as the model returns them, or "
            f"{resizer.src_size}, as the image, got {masks.shape[-2:]}."
        )
    scaled = resizer.scale_image(masks, channels_last=False)
    to_input = ImageResizer(resizer.rescaled_size, padded_size, pad_only=True)
    padded = to_input.pad_image(scaled, channels_last=False)
    return ImageResizer.scale_to_size(padded, mask_size, channels_last=False)
