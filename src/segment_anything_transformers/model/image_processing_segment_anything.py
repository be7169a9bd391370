"""Images into what the model takes, and the model's masks back into pixels of the image.

Needs numpy, PIL and transformers, no framework. Where PyTorch tensors are given, PyTorch tensors
come back.
"""

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs

from .configuration_segment_anything import (
    MASK_UPSCALING,
    SegmentAnythingModelConfig,
    is_preset,
)
from .image_arrays import read_source, to_numpy
from .image_resizer import ImageResizer, InputGeometry
from .mask_ops import crop_boxes, point_grids
from .mask_postprocessing import MaskPostprocessingMixin
from .remote_code import CarriesCode

__all__ = ["ImageResizer", "SegmentAnythingImageProcessor"]

UNKNOWN_LABEL = -1
"""Label where the truth is not known: the loss leaves it out."""

_MODEL_FIELDS = ("input_size", "in_channels", "mean", "std")
"""Fields of the model's configuration that images depend on."""

_UINT16_RANGE = 65535 / 255
"""Range of 16-bit images over that of 8-bit ones, which `rescale_factor` is made for."""


class SegmentAnythingImageProcessorKwargs(ImagesKwargs, total=False):
    """Options of the image processor beyond those that every one has.

    Attributes:
        mask_size: `{"longest_edge": ...}` of the low-resolution masks.
        mask_pad_size: `{"height": H', "width": W'}` of the low-resolution masks.
        pad_to_multiple_of: Pad no further than to a multiple of it, the patch size.
    """

    mask_size: dict[str, int]
    mask_pad_size: dict[str, int]
    pad_to_multiple_of: int | None


class SegmentAnythingImageProcessor(CarriesCode, MaskPostprocessingMixin, PilBackend):
    """Resizes, normalises and then pads images; brings masks back to the size of the image.

    An image is scaled to the largest size that fits into `size` and `pad_size`, its values become
    `(image / 255 - image_mean) / image_std`, and zeros are added below and on the right. Values
    are taken by their dtype, never by what they happen to be:

    - uint8: 0 to 255; bool: 0 and 1; other integers: 0 to 255, anything else is refused;
    - uint16: 0 to 65535;
    - floating point: 0 to 255, or any range with `do_rescale=False`, which then has to be that of
      `image_mean`, usually 0 to 1;
    - files and PIL images are turned upright as their camera noted, and with more than 8 bits
      their darkest value becomes 0 and their brightest 255.

    Args:
        kwargs: The attributes to set differently.

    Attributes:
        size: `{"longest_edge": ...}` of the scaled image.
        pad_size: `{"height": H, "width": W}` of the model input; need not be square.
        mask_size: `{"longest_edge": ...}` of `labels`.
        mask_pad_size: `{"height": H', "width": W'}` of `labels`, and of mask prompts.
        pad_to_multiple_of: None to pad to `pad_size`. The patch size, for models with
            `fixed_input_size=False`, to pad no further than needed; `pad_size` is a bound then.
        image_mean: Mean of each channel for values in [0, 1]. Its length is the number of
            channels C.
        image_std: Standard deviation of each channel.
        do_resize: If False images are not scaled; they have to fit into `pad_size`.
        do_rescale: Whether to multiply by `rescale_factor`.
        do_normalize: Whether to subtract the mean and divide by the standard deviation.
        do_pad: Whether to pad.
        do_convert_rgb: Whether to convert images of other modes: grey to RGB, RGBA to RGB
            (transparency is dropped), PIL images of any mode to RGB or, for one channel, to grey.
    """

    auto_names = ("AutoImageProcessor",)
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"longest_edge": 1024}  # noqa: RUF012 - copied for each instance by the base class
    pad_size = {"height": 1024, "width": 1024}  # noqa: RUF012
    mask_size = {"longest_edge": 256}  # noqa: RUF012
    mask_pad_size = {"height": 256, "width": 256}  # noqa: RUF012
    pad_to_multiple_of = None
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_pad = True
    do_convert_rgb = True
    valid_kwargs = SegmentAnythingImageProcessorKwargs

    @classmethod
    def from_config(cls, config: SegmentAnythingModelConfig, **kwargs: Any) -> Self:
        """The image processor that belongs to a model.

        Args:
            config: The model's configuration: input size, mask size, channels, mean and std count.
            kwargs: Attributes to set differently, such as
                `pad_to_multiple_of=config.encoder_patch_size`.
        """
        return cls(**{**cls.fields_for(config), **kwargs})

    @staticmethod
    def fields_for(config: SegmentAnythingModelConfig) -> dict[str, Any]:
        """The attributes that belong to a model."""
        height, width = config.input_size
        mask_h, mask_w = config.mask_size()
        return {
            "size": {"longest_edge": max(height, width)},
            "pad_size": {"height": height, "width": width},
            "mask_size": {"longest_edge": max(mask_h, mask_w)},
            "mask_pad_size": {"height": mask_h, "width": mask_w},
            "image_mean": config.channel_mean,
            "image_std": config.channel_std,
        }

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Dictionary of the image processor for a preset's name, a folder or a Hub repository.

        Fields of the model's configuration that images depend on, `input_size`, `in_channels`,
        `mean` and `std`, change it as they change the model.
        """
        name = str(pretrained_model_name_or_path)
        of_model = {field: kwargs.pop(field) for field in _MODEL_FIELDS if field in kwargs}
        if is_preset(name):
            config = SegmentAnythingModelConfig.from_preset(name, **of_model)
            return cls.from_config(config).to_dict(), kwargs
        fields, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        return {**fields, **_fields_of_model(fields, of_model)} if of_model else fields, kwargs

    def preprocess(self, images: Any, segmentation_maps: Any = None, **kwargs: Any) -> BatchFeature:
        """Images as the model takes them.

        Args:
            images: An image or a list of images of any sizes: PIL images of any mode, numpy arrays
                or tensors, (H0, W0), (H0, W0, C) or (C, H0, W0), a batch of them (four axes), or
                paths and URLs.
            segmentation_maps: True masks for training, one entry an image: (H0, W0), or
                (P, H0, W0) for P prompt sets. Positive is the object, 0 is not, negative is
                unknown.
            kwargs: Attributes to set differently for this call, and `return_tensors`: "pt", "np",
                or None for lists of arrays.

        Returns:
            `pixel_values` (N, C, H, W) float32, `original_sizes` (N, 2) and
            `reshaped_input_sizes` (N, 2), the sizes (height, width) before scaling and before
            padding. With maps `labels` (N, P, H', W') int64, 1, 0, or -1 where the truth is not
            known; missing prompt sets are -1 throughout.

        Raises:
            TypeError: An image is not an image, or an option does not exist.
            ValueError: An image is empty, has other channels, or has values out of range; a map
                has another size than its image.
        """
        return super().preprocess(images, segmentation_maps, **kwargs)

    def generate_crop_boxes(
        self,
        image: Any,
        target_size: int | None = None,
        crop_n_layers: int = 0,
        overlap_ratio: float = 512 / 1500,
        points_per_crop: int = 32,
        crop_n_points_downscale_factor: int = 1,
        device: Any = None,
        return_tensors: str = "pt",
    ) -> tuple[Any, Any, list[np.ndarray], Any]:
        """The image and its crops, with a regular grid of points on each.

        Layers may have unequal numbers of points. A shorter grid is filled up with its last point
        once more: the mask it gives is a duplicate, and goes with the other duplicates.

        Args:
            image: One image, as in `preprocess`.
            target_size: Longest edge of the scaled crops, by default that of `size`.
            crop_n_layers: Layers of crops besides the whole image; layer i has 4**i crops.
            overlap_ratio: Overlap of the first layer's crops, as a share of the shorter side.
            points_per_crop: Points along a side of the whole image.
            crop_n_points_downscale_factor: Layer i has `points_per_crop / factor**i` a side.
            device: Where the tensors go.
            return_tensors: "pt" for PyTorch tensors, "np" for numpy arrays.

        Returns:
            Boxes of the crops (C, 4) int64 with exclusive right and bottom; points (1, n, C, 2)
            float32 in model-input pixels; the crops as (h, w, channels) arrays; and the points'
            labels (1, n, C) int64, all foreground.

        Raises:
            ValueError: A layer is left without points, or the image is not one.
        """
        size = {} if target_size is None else {"size": {"longest_edge": target_size}}
        geometry = self.geometry(**size)
        pixels = np.moveaxis(_read(image, vars(self)), 0, -1)
        boxes, layers = crop_boxes(pixels.shape[:2], crop_n_layers, overlap_ratio)
        grids = point_grids(points_per_crop, crop_n_layers, crop_n_points_downscale_factor)
        crops = [pixels[top:bottom, left:right] for left, top, right, bottom in boxes]
        n_points = max(map(len, grids))
        points = np.empty((1, n_points, len(crops), 2), np.float32)
        for index, (crop, layer) in enumerate(zip(crops, layers, strict=True)):
            height, width = crop.shape[:2]
            grid = np.pad(grids[layer], ((0, n_points - len(grids[layer])), (0, 0)), mode="edge")
            resizer = geometry.image_resizer((height, width))
            points[0, :, index] = resizer.scale_points(grid * (width, height))
        arrays = {"boxes": boxes, "points": points, "labels": np.ones(points.shape[:-1], np.int64)}
        tensors = BatchFeature(arrays, tensor_type=return_tensors)
        if device is not None:
            tensors = tensors.to(device)
        return tensors["boxes"], tensors["points"], crops, tensors["labels"]

    def geometry(self, **kwargs: Any) -> InputGeometry:
        """How images and low-resolution masks are placed in the model input.

        Args:
            kwargs: Attributes to set differently, as in a call.
        """
        options = {name: getattr(self, name, None) for name in self._valid_kwargs_names}
        return InputGeometry.from_options(self._standardize_kwargs(**{**options, **kwargs}))

    def _standardize_kwargs(  # type: ignore[override]
        self, **kwargs: Any
    ) -> dict[str, Any]:
        """Sizes as SizeDict, channel statistics as tuples; refuses what cannot be done."""
        kwargs = super()._standardize_kwargs(**kwargs)
        for name, keys in _SIZE_KEYS.items():
            size = dict(kwargs.get(name) or {})
            if not all(size.get(key) for key in keys):
                expected = ", ".join(f'"{key}": ...' for key in keys)
                raise ValueError(f"{name} must be {{{expected}}}, got {size}.")
            kwargs[name] = SizeDict(**size)
        mean, std = kwargs["image_mean"], kwargs["image_std"]
        if not isinstance(mean, tuple) or not isinstance(std, tuple) or len(mean) != len(std):
            raise ValueError(
                "image_mean and image_std need one value for each channel of the images, "
                f"got {mean} and {std}."
            )
        if kwargs.get("resample") not in (None, PILImageResampling.BILINEAR):
            raise ValueError(
                "resample must be bilinear (2), which the models are trained with, "
                f"got {kwargs['resample']}."
            )
        return kwargs

    def _preprocess_image_like_inputs(  # type: ignore[override]
        self, images: Any, segmentation_maps: Any = None, **options: Any
    ) -> BatchFeature:
        """Overrides the step of the base class that comes after its checks of the options."""
        pixels = [_read(image, options) for image in _as_list(images)]
        original_sizes = [(image.shape[1], image.shape[2]) for image in pixels]
        geometry = InputGeometry.from_options(options)
        resizers = [geometry.image_resizer(size) for size in original_sizes]
        scaled = [
            _normalised(resizer.scale_image(image, channels_last=False), options)
            for image, resizer in zip(pixels, resizers, strict=True)
        ]
        reshaped_sizes = [resizer.rescaled_size for resizer in resizers]
        padded_size = geometry.padded_size(reshaped_sizes)
        data: dict[str, Any] = {
            "pixel_values": _padded(scaled, padded_size) if options["do_pad"] else scaled,
            "original_sizes": original_sizes,
            "reshaped_input_sizes": reshaped_sizes,
        }
        if segmentation_maps is not None:
            maps = _maps_by_image(segmentation_maps, original_sizes)
            data["labels"] = _labels(maps, padded_size, geometry)
        return BatchFeature(data, tensor_type=options["return_tensors"])


_SIZE_KEYS = {
    "size": ("longest_edge",),
    "pad_size": ("height", "width"),
    "mask_size": ("longest_edge",),
    "mask_pad_size": ("height", "width"),
}


def _as_list(images: Any) -> list[Any]:
    """One entry an image, from one image, a list of them, or an array with four axes."""
    if isinstance(images, (list, tuple)):
        if not images:
            raise ValueError("Expected at least one image, got an empty list.")
        return list(images)
    return list(images) if getattr(images, "ndim", 3) == 4 else [images]


def _read(image: Any, options: dict[str, Any]) -> np.ndarray:
    """The image as (C, H0, W0): uint8, uint16, or float32 in the right range."""
    layout = options.get("input_data_format")
    channels_last = None if layout is None else ChannelDimension(layout) == ChannelDimension.LAST
    pixels = read_source(
        image, len(options["image_mean"]), bool(options["do_convert_rgb"]), channels_last
    )
    if pixels.dtype == np.float32:
        _check_range(pixels, bool(options["do_rescale"]))
    return pixels


def _check_range(pixels: np.ndarray, do_rescale: bool) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("Expected finite pixel values, got NaN or infinity.")
    if do_rescale and (low < 0 or high > 255):
        raise ValueError(
            f"Expected floating-point pixel values from 0 to 255, got {low:g} to {high:g}. Scale "
            "them, or pass do_rescale=False if they are in the range of image_mean."
        )
    # 0 to 1 taken for 0 to 255 is a black picture and the commonest mistake. Whole numbers up to
    # 1 may be a dark picture.
    if do_rescale and high <= 1 and (pixels % 1).any():
        raise ValueError(
            f"Expected floating-point pixel values from 0 to 255, got fractions up to {high:g}. "
            "Pass do_rescale=False for values from 0 to 1."
        )


def _normalised(pixels: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    if options["do_rescale"]:
        range_of_dtype = _UINT16_RANGE if pixels.dtype == np.uint16 else 1.0
        # in float64, so that the result is the nearest float32
        pixels = pixels * np.float64(options["rescale_factor"] / range_of_dtype)
    pixels = pixels.astype(np.float32)
    if options["do_normalize"]:
        pixels -= np.asarray(options["image_mean"], np.float32)[:, None, None]
        pixels /= np.asarray(options["image_std"], np.float32)[:, None, None]
    return pixels


def _padded(images: list[np.ndarray], padded_size: tuple[int, int]) -> list[np.ndarray]:
    """Images (C, h, w) with zeros below and on the right."""
    return [
        ImageResizer(image.shape[1:], padded_size, pad_only=True).pad_image(image, False)
        for image in images
    ]


def _labels(
    maps: list[np.ndarray], padded_size: tuple[int, int], geometry: InputGeometry
) -> np.ndarray:
    """Labels (N, P, H', W') int64 of one array (P, H0, W0) an image."""
    label_size = geometry.padded_mask_size(padded_size)
    labels = np.full((len(maps), max(map(len, maps)), *label_size), UNKNOWN_LABEL, np.int64)
    for index, image_maps in enumerate(maps):
        height, width = geometry.rescaled_mask_size(image_maps.shape[1:])
        labels[index, : len(image_maps)] = 0
        for prompt_set, segmentation_map in enumerate(image_maps):
            picture = Image.fromarray(np.sign(np.rint(segmentation_map)).astype(np.int32))
            nearest = picture.resize((width, height), Image.Resampling.NEAREST)
            labels[index, prompt_set, :height, :width] = np.asarray(nearest)
    return labels


def _maps_by_image(
    segmentation_maps: Any, original_sizes: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """One (P, H0, W0) array an image."""
    n_images = len(original_sizes)
    if not isinstance(segmentation_maps, (list, tuple)):
        segmentation_maps = to_numpy(segmentation_maps)
        if n_images == 1 and segmentation_maps.ndim < 4:
            segmentation_maps = [segmentation_maps]
    if len(segmentation_maps) != n_images:
        raise ValueError(
            f"Expected segmentation_maps of {n_images} images, got {len(segmentation_maps)}."
        )
    maps = []
    for segmentation_map, size in zip(segmentation_maps, original_sizes, strict=True):
        array = to_numpy(segmentation_map)
        if array.shape[-2:] != size or array.ndim not in (2, 3):
            raise ValueError(
                f"Expected a segmentation map of shape {size} or (P, {size[0]}, {size[1]}), like "
                f"its image, got shape {array.shape}."
            )
        maps.append(array.reshape(-1, *size))
    return maps


def _fields_of_model(fields: dict[str, Any], of_model: dict[str, Any]) -> dict[str, Any]:
    """Fields of a saved image processor for a model with some fields of its own."""
    padded, masks = (
        {**getattr(SegmentAnythingImageProcessor, name), **fields.get(name, {})}
        for name in ("pad_size", "mask_pad_size")
    )
    config = SegmentAnythingModelConfig(
        **{
            "input_size": (padded["height"], padded["width"]),
            "encoder_patch_size": MASK_UPSCALING * padded["height"] // masks["height"],
            "in_channels": len(fields.get("image_mean", IMAGENET_DEFAULT_MEAN)),
            "mean": fields.get("image_mean", IMAGENET_DEFAULT_MEAN),
            "std": fields.get("image_std", IMAGENET_DEFAULT_STD),
            **of_model,
        }
    )
    return SegmentAnythingImageProcessor.fields_for(config)
