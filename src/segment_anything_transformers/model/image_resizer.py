"""Images scaled to fit the model's input, and coordinates and masks along with them.

Needs numpy and PIL only. Images go through PIL's bilinear filter with antialiasing, masks of
logits through bilinear interpolation without, as in Meta's code.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from PIL import Image

from .mask_ops import resize_bilinear

SizeHW = tuple[int, int]


class ImageResizer:
    """Scales images of one size to the largest size that fits a target, keeping their shape.

    What fits is padded with zeros to the target at the bottom and on the right. Points, boxes and
    masks are brought along. A resizer belongs to one size of source image.

    Attributes:
        src_size: Size (H0, W0) of the image, in pixels.
        dst_size: Size (H, W) after scaling and padding.
        pad_only: Whether scaling is left out.
        rescaled_size: Size after scaling and before padding. The longer side, relative to the
            target, equals the target's; the other one is rounded to the nearest pixel, as in
            Meta's code, and is at least 1.

    Source: the class ImageResizer of the specification.
    """

    def __init__(self, src_size: SizeHW, dst_size: SizeHW, pad_only: bool = False) -> None:
        """Computes `rescaled_size`.

        Args:
            src_size: Size (H0, W0) of the image.
            dst_size: Target size (H, W) after scaling and padding.
            pad_only: If True images are padded and never scaled.

        Raises:
            ValueError: A size is not two positive integers, or with `pad_only` the image is
                larger than the target.
        """
        self.src_size = _checked_size("src_size", src_size)
        self.dst_size = _checked_size("dst_size", dst_size)
        self.pad_only = pad_only
        self.rescaled_size = self.src_size if pad_only else self._fitted_size()
        _check_fits(self.rescaled_size, self.dst_size)

    @property
    def scale(self) -> float:
        """Factor that an image is scaled by, before sizes are rounded to pixels; 1 to pad only."""
        if self.pad_only:
            return 1.0
        return min(dst / src for dst, src in zip(self.dst_size, self.src_size, strict=True))

    def _fitted_size(self) -> SizeHW:
        return _scaled(self.src_size, self.scale)

    def scale_image(self, image: np.ndarray, channels_last: bool = True) -> np.ndarray:
        """The image at `rescaled_size`, with the same dtype.

        Args:
            image: (H0, W0, C) or (N, H0, W0, C), or channels first; any number of channels.
                Integers keep their range. Booleans are rounded to the nearest again.
            channels_last: Whether the channels are the last axis.

        Raises:
            ValueError: The image does not have 3 or 4 axes, or is not of size `src_size`.
        """
        size_hw = _spatial_size(image, channels_last)
        if size_hw != self.src_size:
            raise ValueError(
                f"Expected an image of src_size {self.src_size}, got {size_hw} from the shape "
                f"{np.shape(image)}. Make one ImageResizer for each image size, and say with "
                "channels_last where the channels are."
            )
        if self.pad_only:
            return np.asarray(image)
        return self.scale_to_size(image, self.rescaled_size, channels_last)

    def unscale_image(self, image: np.ndarray, channels_last: bool = True) -> np.ndarray:
        """The image scaled back to `src_size`, with the same dtype.

        Args:
            image: 3 or 4 axes, of size `rescaled_size`: cut the padding off first.
            channels_last: Whether the channels are the last axis.

        Raises:
            ValueError: The image does not have 3 or 4 axes.
        """
        return self.scale_to_size(image, self.src_size, channels_last)

    def pad_image(self, image: np.ndarray, channels_last: bool = True) -> np.ndarray:
        """The image with zeros below and on the right of it, of size `dst_size`.

        Args:
            image: 3 or 4 axes, not larger than `dst_size`.
            channels_last: Whether the channels are the last axis.

        Raises:
            ValueError: The image does not have 3 or 4 axes, or is larger than `dst_size`.
        """
        height, width = _spatial_size(image, channels_last)
        _check_fits((height, width), self.dst_size)
        channels_first = _channels_first(image, channels_last)
        padded = np.zeros((*channels_first.shape[:-2], *self.dst_size), channels_first.dtype)
        padded[..., :height, :width] = channels_first
        return np.moveaxis(padded, -3, -1) if channels_last else padded

    def scale_points(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2), x before y, in pixels of the scaled image: float32.

        Raises:
            ValueError: The last axis is not 2.
        """
        return self._scaled_coordinates("points", points, 2)

    def scale_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (..., 4): left, top, right, bottom in pixels of the scaled image: float32.

        Raises:
            ValueError: The last axis is not 4.
        """
        return self._scaled_coordinates("boxes", boxes, 4)

    def _scaled_coordinates(self, name: str, coordinates: np.ndarray, length: int) -> np.ndarray:
        coordinates = np.asarray(coordinates, np.float64)
        if coordinates.shape[-1:] != (length,):
            raise ValueError(
                f"Expected {name} of shape (..., {length}), got shape {coordinates.shape}."
            )
        # Both axes have a factor of their own, because the rescaled size is rounded.
        scale_y, scale_x = np.divide(self.rescaled_size, self.src_size)
        return (coordinates * np.tile([scale_x, scale_y], length // 2)).astype(np.float32)

    def postprocess_mask(self, mask: np.ndarray, threshold: float | None = None) -> np.ndarray:
        """A mask without the padding, at `src_size`.

        Args:
            mask: Logits of size `dst_size`, (..., H, W).
            threshold: If given, the result is boolean: where the logits are above it.

        Returns:
            (..., H0, W0) float32, or bool with a threshold.

        Raises:
            ValueError: The mask is not of size `dst_size`.
        """
        mask = np.asarray(mask)
        if mask.shape[-2:] != self.dst_size:
            raise ValueError(
                f"Expected a mask of dst_size {self.dst_size} on the last two axes, got the shape "
                f"{mask.shape}."
            )
        height, width = self.rescaled_size
        mask_logits = resize_bilinear(mask[..., :height, :width], self.src_size)
        return mask_logits if threshold is None else mask_logits > threshold

    @staticmethod
    def scale_to_size(image: np.ndarray, size: SizeHW, channels_last: bool) -> np.ndarray:
        """The image at exactly this size, whatever becomes of its proportions.

        Args:
            image: 3 or 4 axes, as in `scale_image`.
            size: Height and width of the result.
            channels_last: Whether the channels are the last axis.

        Raises:
            ValueError: The image does not have 3 or 4 axes or is empty, or the size is not two
                positive integers.
        """
        size_hw = _checked_size("size", size)
        _checked_size("image size", _spatial_size(image, channels_last))
        channels_first = _channels_first(image, channels_last)
        planes = channels_first.reshape(-1, *channels_first.shape[-2:])
        scaled = np.empty((len(planes), *size_hw), planes.dtype)
        for index, plane in enumerate(planes):
            scaled[index] = _scaled_plane(plane, size_hw)
        scaled = scaled.reshape(*channels_first.shape[:-2], *size_hw)
        return np.moveaxis(scaled, -3, -1) if channels_last else scaled


@dataclass(frozen=True)
class InputGeometry:
    """How images and low-resolution masks of any size come to lie in the model input.

    Attributes:
        longest_edge: Longest edge of a scaled image.
        pad_size: Size (H, W) of the padded input, which a scaled image has to fit.
        mask_longest_edge: Longest edge of a low-resolution mask.
        mask_pad_size: Size (H', W') of a padded one.
        pad_to_multiple_of: If given, images are padded to a multiple of it only, and `pad_size`
            is a bound.
        do_resize: Whether images are scaled at all.
    """

    longest_edge: int
    pad_size: SizeHW
    mask_longest_edge: int
    mask_pad_size: SizeHW
    pad_to_multiple_of: int | None = None
    do_resize: bool = True

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """The geometry that an image processor's options describe, with dictionaries as sizes."""
        return cls(
            longest_edge=options["size"]["longest_edge"],
            pad_size=(options["pad_size"]["height"], options["pad_size"]["width"]),
            mask_longest_edge=options["mask_size"]["longest_edge"],
            mask_pad_size=(options["mask_pad_size"]["height"], options["mask_pad_size"]["width"]),
            pad_to_multiple_of=options["pad_to_multiple_of"],
            do_resize=bool(options["do_resize"]),
        )

    @property
    def mask_scale(self) -> float:
        """A length in a low-resolution mask over the same length in the model input."""
        return self.mask_longest_edge / self.longest_edge

    def image_resizer(self, original_size: SizeHW) -> ImageResizer:
        """The resizer from the original size to the model input, without its padding."""
        if not self.do_resize:
            return ImageResizer(original_size, original_size, pad_only=True)
        return ImageResizer(original_size, _bounded(self.pad_size, self.longest_edge))

    def rescaled_mask_size(self, original_size: SizeHW) -> SizeHW:
        """Size of the low-resolution mask of an image, before padding."""
        if not self.do_resize:
            return _scaled(original_size, self.mask_scale)
        box = _bounded(self.mask_pad_size, self.mask_longest_edge)
        return ImageResizer(original_size, box).rescaled_size

    def padded_size(self, reshaped_sizes: Iterable[SizeHW]) -> SizeHW:
        """Size (H, W) of the model input for a batch of scaled images."""
        multiple = self.pad_to_multiple_of
        if not multiple:
            return self.pad_size
        height, width = np.max(list(reshaped_sizes), axis=0).tolist()
        return height + -height % multiple, width + -width % multiple

    def padded_mask_size(self, padded_size: SizeHW) -> SizeHW:
        """Size (H', W') of the low-resolution masks that belong to a model input."""
        return (
            _scaled(padded_size, self.mask_scale) if self.pad_to_multiple_of else self.mask_pad_size
        )

    def input_size_of_masks(self, mask_size: SizeHW) -> SizeHW:
        """Size (H, W) of the model input that low-resolution masks belong to."""
        return _scaled(mask_size, 1 / self.mask_scale) if self.pad_to_multiple_of else self.pad_size


def _bounded(size_hw: SizeHW, longest_edge: int) -> SizeHW:
    return min(size_hw[0], longest_edge), min(size_hw[1], longest_edge)


def _scaled(size_hw: SizeHW, scale: float) -> SizeHW:
    # A strip of 1 x 3000 pixels would come out with no height at all.
    return max(1, int(size_hw[0] * scale + 0.5)), max(1, int(size_hw[1] * scale + 0.5))


def _scaled_plane(plane: np.ndarray, size_hw: SizeHW) -> np.ndarray:
    """One channel, resized by PIL: in bytes if it has bytes, else in float32.

    PIL gives each channel of an RGB picture the same values as a channel alone. With four channels
    it would take the last one for transparency.
    """
    wide = plane if plane.dtype == np.uint8 else plane.astype(np.float32)
    resized = Image.fromarray(wide).resize(size_hw[::-1], Image.Resampling.BILINEAR)
    scaled = np.asarray(resized)
    if plane.dtype == np.bool_:
        return scaled >= 0.5
    return np.rint(scaled) if np.issubdtype(plane.dtype, np.integer) else scaled


def _channels_first(image: np.ndarray, channels_last: bool) -> np.ndarray:
    return np.moveaxis(image, -1, -3) if channels_last else np.asarray(image)


def _spatial_size(image: np.ndarray, channels_last: bool) -> SizeHW:
    shape = np.shape(image)
    if len(shape) not in (3, 4):
        layout = "(H, W, C) or (N, H, W, C)" if channels_last else "(C, H, W) or (N, C, H, W)"
        raise ValueError(f"Expected an image of shape {layout}, got {len(shape)} axes: {shape}.")
    height, width = shape[-3:-1] if channels_last else shape[-2:]
    return height, width


def _checked_size(name: str, size: Sequence[int]) -> SizeHW:
    sides = tuple(np.asarray(size).tolist()) if np.ndim(size) == 1 else ()
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name} must be two positive integers (height, width), got {size}.")
    return sides


def _check_fits(size_hw: SizeHW, dst_size: SizeHW) -> None:
    if size_hw[0] > dst_size[0] or size_hw[1] > dst_size[1]:
        raise ValueError(
            f"An image of size {size_hw} cannot be padded to the smaller size {dst_size}. "
            "Scale it first."
        )
