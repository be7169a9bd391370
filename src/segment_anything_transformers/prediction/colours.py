"""The colours of an image that is resized already, as the model's input has them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..model.image_processing_segment_anything import SegmentAnythingImageProcessor

Preprocessing = Callable[[np.ndarray], np.ndarray]


class Colours:
    """What an image processor does to an image that is already resized, and not yet padded.

    A class, so that a predictor can be pickled for another process.
    """

    def __init__(self, processor: SegmentAnythingImageProcessor) -> None:
        """Keeps the image processor."""
        self.processor = processor

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The model's input values of an image (h, w, C), uint8, uint16 or float32."""
        is_float = image.dtype == np.float32
        if is_float:
            # Not left to the processor, which would take a black cut-out for one in [0, 1].
            image = image * np.float32(self.processor.rescale_factor)
        features = self.processor(
            image,
            do_rescale=not is_float,
            do_resize=False,
            do_pad=False,
            input_data_format="channels_last",
            return_tensors="np",
        )
        return features["pixel_values"][0].transpose(1, 2, 0)


def check_values(pixels: np.ndarray, expects_bytes: bool) -> None:
    """Raises ValueError for a float image that is not finite or, if so expected, in [0, 255]."""
    lowest, highest = float(pixels.min()), float(pixels.max())
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("Pixel values must be finite, got NaN or infinity.")
    if expects_bytes and not 0 <= lowest <= highest <= 255:
        raise ValueError(
            f"Pixel values must lie in [0, 255], got {lowest:g} to {highest:g}. Scale the image, "
            "or pass a function for such values as preprocessing."
        )
    if expects_bytes and highest <= 1 and (pixels % 1).any():  # a black one has whole numbers
        raise ValueError(
            f"Pixel values must lie in [0, 255], and these are fractions up to {highest:g}: "
            "this looks like an image in [0, 1]. Multiply it by 255."
        )
