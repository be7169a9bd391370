"""One image, many prompts: numpy in, numpy out, whichever framework computes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from typing import Any

import numpy as np

from ..model.image_arrays import ImageSource, read_source
from ..model.image_processing_segment_anything import ImageResizer, SegmentAnythingImageProcessor
from ..model.mask_upscaling import MaskUpscaler
from .backends import GoodMasks, backend_for
from .colours import Colours, Preprocessing, check_values
from .encoded_image import EncodedImage, PreparedImage, fitted, model_name
from .prompts import FOREGROUND, checked_masks, checked_prompts
from .scene import Scene, Sight
from .zoom import MARGIN, OUTSIDE_LOGIT, Region, checked_target


class SAMPredictor:
    """An image that is encoded once and then answers any number of prompts.

    Prompts are given, and masks come back, in the pixels of the original image:

        predictor = SAMPredictor(SegmentAnythingModel.from_pretrained("sam_vit_t"))
        predictor.set_image(image)
        masks, scores, logits = predictor(points=np.array([[120, 80]]))
        best = scores.argmax()
        masks, scores, logits = predictor(points=more_points, masks=logits[best][None])

    A small object is found in more detail in a part of the image, see `zoom`:

        predictor.zoom(masks[best])
        masks, scores, logits = predictor(points=np.array([[120, 80]]))

    Several threads may ask about one image. To work on images of their own each needs a predictor
    of its own, which costs nothing: they share the model. Otherwise one would be answered about
    another's image; that raises a RuntimeError.

    Args:
        model: A `SegmentAnythingModel` of either framework. It stays on its device and in its
            precision and mode; nothing here builds gradients or applies dropout.
        preprocessing: What is done to the colours. A function of the image after resizing,
            (h, w, C) with the values that `set_image` got, the longest side filling the model's
            input; it returns the model's input values, floats of the same shape, which are then
            padded with zeros. Resizing and padding are not its task, because the prompts have to
            follow them. Or a `SegmentAnythingImageProcessor`, of which only the colours are used.
            By default the image processor that belongs to the model's configuration.
        dtype: Precision to run a PyTorch model's encoder in: "bfloat16" and "float16" are faster
            where the processor or the GPU computes in them, and masks differ at a few pixels of
            their edge. The decoder keeps its precision.
            "int8" rounds the weights of the encoder's linear layers, and their inputs, to 8 bits;
            masks differ more. A copy of the model is made then; a model loaded with `dtype=`
            needs none. By default the model's own.

    Source: the class SAMPredictor of the specification.
    """

    def __init__(
        self,
        model: Any,
        preprocessing: Preprocessing | SegmentAnythingImageProcessor | None = None,
        dtype: Any = None,
    ) -> None:
        """Wraps a model. No image is set yet."""
        self.backend = backend_for(model, dtype)
        self.config = self.backend.config
        chosen: Any = preprocessing or SegmentAnythingImageProcessor.from_config(self.config)
        # Not isinstance: a class that was loaded from the Hub is another class.
        self._expects_bytes = hasattr(chosen, "image_mean")
        self.preprocessing = Colours(chosen) if self._expects_bytes else chosen
        self._sight = Sight()

    def sibling(self) -> SAMPredictor:
        """A predictor of the same model and preprocessing with an image of its own, none yet."""
        other = copy(self)
        other._sight = Sight()
        return other

    def clear_image(self) -> None:
        """Unsets the image and forgets the embedding."""
        self._sight.look_at(None)

    @property
    def is_image_set(self) -> bool:
        """Whether there is an image to ask about."""
        return self._sight.scene is not None

    @property
    def image_embeddings(self) -> Any:
        """The embeddings of the image, or of the part that it is zoomed to.

        A tensor of the model's framework: (1, D, H'', W'') in PyTorch, (1, H'', W'', D) in Keras.
        `save_encoded` keeps them.

        Raises:
            RuntimeError: If no image is set.
        """
        return self._require_image().seen.image_embeddings

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width (H0, W0) of the image.

        Raises:
            RuntimeError: If no image is set.
        """
        return self._require_image().size_hw

    @property
    def region(self) -> Region:
        """The part of the image that prompts are answered from, in pixels.

        A tuple of left, top, right and bottom, the last two exclusive; all of it unless `zoom`
        changed that.

        Raises:
            RuntimeError: If no image is set.
        """
        return self._require_image().part

    def set_image(self, image: ImageSource) -> None:
        """Calculates and keeps the embedding of an image, in place of an earlier one.

        Args:
            image: (H0, W0, C) with values in [0, 255], uint8 or float, of any size; or uint16 with
                values in [0, 65535]. Or a PIL image or the path of a file, which are turned
                upright, and stretched where they have more than 8 bits, as everywhere in this
                package. For a model of three channels a grey image, also (H0, W0), is repeated and
                transparency is dropped.

        Raises:
            OSError: If the file cannot be opened.
            TypeError: If it is not an image.
            ValueError: If its shape, its number of channels or its values do not fit.
        """
        pixels = self.read_image(image)
        self.clear_image()
        self.look_at(self._encoded(pixels))

    def encode_image(self, image: ImageSource) -> EncodedImage:
        """An image, encoded; sets none, so that it may run in another thread than the prompts.

        Takes and raises what `set_image` does. `set_encoded` sets it, in this predictor and in
        others of the same model, and `SAMAutomaticMaskGenerator.generate` takes it, too: an image
        is encoded once for both.
        """
        return self._encoded(self.read_image(image))

    def _encoded(self, pixels: np.ndarray) -> EncodedImage:
        [encoded] = self.encode([self.prepare(pixels)])
        return encoded._replace(pixels=pixels)

    @property
    def encoded_image(self) -> EncodedImage:
        """The image, all of it, as `set_encoded` takes it.

        Raises:
            RuntimeError: If no image is set.
        """
        return self._require_image().whole

    def zoom(self, target: np.ndarray | Sequence[float] | None, margin: float = MARGIN) -> None:
        """Looks at a part of the image more closely: the part is encoded, as large as will fit.

        The prompts that follow are answered from it alone, with outlines as fine as there. Prompts
        and masks stay in pixels of the whole image; beyond the part a mask is empty. The
        low-resolution logits are those of the part: pass logits of another part, or of the whole
        image, through `preprocess_masks` at full size.

        Args:
            target: What is to be seen: a box (4,) of left, top, right and bottom, or a boolean mask
                (H0, W0), such as one that a click found. None for all of the image, which stays
                encoded.
            margin: How much to show on each side of it, over its longer side.

        Raises:
            RuntimeError: If no image is set, or only its embedding is.
            TypeError: If the mask is not boolean.
            ValueError: If the mask has another size than the image, or is empty, the box is not in
                the image, or the margin is negative.
        """
        scene = self._require_image()
        size_hw = scene.size_hw
        if target is None:
            self._sight.look_at(scene._replace(seen=scene.whole, region=None))
            return
        if not margin >= 0:
            raise ValueError(f"margin must be 0 or more, got {margin}.")
        region = Region.around(checked_target(np.asarray(target), size_hw), size_hw, margin)
        if region == scene.part:
            return
        if region == Region.whole(size_hw):
            self.zoom(None)
            return
        if scene.pixels is None:
            raise RuntimeError("Only the image's embedding is set. Call set_image(image) to zoom.")
        [seen] = self.encode([self.prepare(scene.pixels[region.rows_and_columns])])
        self._sight.look_at(scene._replace(seen=seen, region=region))

    def read_image(self, image: ImageSource) -> np.ndarray:
        """The image, checked, as an (H0, W0, C) array of uint8, uint16 or float32.

        Takes and raises what `set_image` does.
        """
        pixels = np.moveaxis(read_source(image, self.config.in_channels), 0, -1)
        if pixels.dtype == np.float32:
            check_values(pixels, self._expects_bytes)
        return pixels

    def prepare(self, pixels: np.ndarray) -> PreparedImage:
        """What `read_image` returned, or a cut-out of it, as the model takes it.

        Sets no image, like `encode`: both may run in another thread than the prompts.

        Raises:
            ValueError: If `preprocessing` changes the shape.
        """
        resizer = ImageResizer(pixels.shape[:2], self.config.input_size)
        resized = resizer.scale_image(pixels)
        input_values = np.asarray(self.preprocessing(resized), np.float32)
        if input_values.shape != resized.shape:
            raise ValueError(
                f"preprocessing must return an array of the shape it receives, {resized.shape}, "
                f"got {input_values.shape}. Resizing and padding are done by the predictor."
            )
        padded = resizer.pad_image(input_values)  # (H, W, C), zero after normalising
        return PreparedImage(padded.transpose(2, 0, 1), resizer)

    def encode(self, images: Sequence[PreparedImage]) -> list[EncodedImage]:
        """Some images, encoded together."""
        embeddings = self.backend.encode_images(np.stack([image.pixel_values for image in images]))
        return [
            EncodedImage(
                embeddings[index : index + 1], image.resizer, None, model_name(self.backend)
            )
            for index, image in enumerate(images)
        ]

    def save_encoded(self, path: str | os.PathLike[str]) -> None:
        """Writes the image's embeddings and sizes to a file, to be set again by `set_encoded`.

        Models of both frameworks read it. The image's pixels are not in it.

        Args:
            path: The file, `.safetensors` or `.npz`.

        Raises:
            RuntimeError: If no image is set.
            ValueError: If the path has another ending.
        """
        image = self.encoded_image
        image.save(path, self.backend.to_numpy(image.image_embeddings))

    def set_encoded(self, image: EncodedImage | str | os.PathLike[str]) -> None:
        """Takes an image that is encoded already, in place of an earlier one.

        Without its pixels, as from a file, it cannot be zoomed.

        Args:
            image: What `encode_image`, `encoded_image` or `EncodedImage.load` returned, or the file
                that `save_encoded` wrote.

        Raises:
            OSError: There is no such file.
            TypeError: It is neither an encoded image nor a path.
            ValueError: It is of another model: the embeddings have another shape or another name.
        """
        self.look_at(fitted(image, self.backend))

    def look_at(self, image: EncodedImage) -> None:
        """As `set_encoded`, for what `encode` of this predictor or of a sibling returned."""
        self._sight.look_at(Scene(image, image))

    def __call__(
        self,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The masks that prompts mean in the current image, at that image's original size.

        All prompts given together describe one mask. With a further leading axis of length N on
        each of them, they are N independent prompts, and so have the results. A prompt of length
        0 (M1, M2 or M3) counts as absent.

        Args:
            points: (M1, 2) or (N, M1, 2), x and y in pixels of the original image.
            labels: (M1,) or (N, M1): 1 foreground, 0 background, -1 not a point. Without labels
                every point is foreground.
            boxes: (M2, 4) or (N, M2, 4), left, top, right, bottom in pixels of the original image.
            masks: (M3, H', W') or (N, M3, H', W') logits, from an earlier call or from
                `preprocess_masks`.
            multimask_output: If True, K nested masks for a prompt (`nb_multimask_outputs`), as
                suits a single click. If False, one.
            return_logits: If True, the first result holds logits instead of a boolean mask.

        Returns:
            Masks (K, H0, W0), or (N, K, H0, W0): bool, or float32 logits. The specification's text
            gives their size as (H, W), but masks for the user's own image are what this class is
            for: they always have the original size.
            Scores (K,) or (N, K) float32, the model's own estimate of each mask's IoU.
            Logits (K, H', W') or (N, K, H', W') float32, to be passed on as `masks`.

        Raises:
            FloatingPointError: If the model answers with NaN: its weights are damaged.
            RuntimeError: If no image is set, or another thread has set another one.
            TypeError: If a prompt does not consist of numbers.
            ValueError: If prompts have the wrong shape, or cannot be meant: points or boxes far
                outside the image or in [0, 1], masks that are no logits (`model/prompt_rules.py`).
        """
        scene = self._require_image()
        prompts = points, labels, boxes, masks
        mask_logits, scores = self._answer(scene, *prompts, multimask_output)
        return self._at_original_size(scene, mask_logits, return_logits), scores, mask_logits

    def predict_logits(
        self,
        points: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        masks: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """As a call, but without upscaling: the low-resolution logits and the scores alone.

        Enough to choose among many masks before paying for their full size, see `mask_upscaler`.

        Returns:
            Logits (K, H', W') or (N, K, H', W'), scores (K,) or (N, K), float32.
        """
        return self._answer(self._require_image(), points, labels, boxes, masks, multimask_output)

    def _answer(
        self,
        scene: Scene,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
        multimask_output: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `predict_logits`."""
        embeddings, resizer = scene.seen.image_embeddings, scene.seen.resizer
        mask_hw = self.config.mask_size()
        prompts = checked_prompts(points, labels, boxes, masks, mask_hw, scene.size_hw)
        if scene.region:
            prompts = prompts.within(scene.region)
        if prompts.count == 0:
            n_masks = self.config.nb_multimask_outputs if multimask_output else 1
            empty = np.zeros((0, n_masks, *self.config.mask_size()), np.float32)
            return empty, empty[..., 0, 0]
        mask_logits, scores = self.backend.decode(
            embeddings,
            None if prompts.points is None else resizer.scale_points(prompts.points),
            prompts.labels,
            None if prompts.boxes is None else resizer.scale_boxes(prompts.boxes),
            prompts.masks,
            multimask_output,
        )
        _check_scores(scores)
        return (mask_logits, scores) if prompts.is_batched else (mask_logits[0], scores[0])

    def predict_above(self, points: np.ndarray, iou_threshold: float) -> GoodMasks:
        """Of the multiple masks of each click, those of a predicted quality above a threshold.

        As `predict_logits` of the points (N, M1, 2), all foreground, but the model need not make
        the masks that nobody will see.

        Raises:
            RuntimeError: If no image is set.
        """
        scene = self._require_image()
        embeddings, resizer = scene.seen.image_embeddings, scene.seen.resizer
        labels = np.full(points.shape[:-1], FOREGROUND, np.int64)
        points = resizer.scale_points(points - np.array(scene.part[:2]))
        good = self.backend.decode_above(embeddings, points, labels, iou_threshold)
        _check_scores(good.iou_scores)
        return good

    def upscale(self, mask_logits: np.ndarray) -> np.ndarray:
        """Low-resolution logits (n, H', W') brought to the size of `region`, float32.

        That is (n, H0, W0) unless it is zoomed. The memory of the result runs down the columns.

        Raises:
            RuntimeError: If no image is set.
        """
        return self.mask_upscaler().whole(mask_logits)

    def mask_upscaler(self) -> MaskUpscaler:
        """What brings low-resolution logits to the size of `region`, the image's own as a rule.

        Raises:
            RuntimeError: If no image is set.
        """
        return self._upscaler(self._require_image().seen.resizer)

    def _upscaler(self, resizer: ImageResizer) -> MaskUpscaler:
        return MaskUpscaler(
            self.config.mask_size(), resizer.dst_size, resizer.rescaled_size, resizer.src_size
        )

    def preprocess_masks(self, mask: np.ndarray) -> np.ndarray:
        """Mask logits of the original image's size, resized and padded to be passed as `masks`.

        Args:
            mask: (M, H0, W0) or (N, M, H0, W0) logits (not a boolean mask).

        Returns:
            (M, H', W') or (N, M, H', W') float32.

        Raises:
            RuntimeError: If no image is set.
            TypeError: If the mask is boolean.
            ValueError: If its size is not that of the image.
        """
        scene = self._require_image()
        resizer = scene.seen.resizer
        mask = checked_masks("mask", mask, scene.size_hw, "the image")
        mask = scene.part.of(mask)
        padded = resizer.pad_image(
            resizer.scale_image(mask, channels_last=False), channels_last=False
        )
        return ImageResizer.scale_to_size(padded, self.config.mask_size(), channels_last=False)

    def _require_image(self) -> Scene:
        scene = self._sight.scene
        if scene is None:
            raise RuntimeError("No image is set. Call set_image(image) first.")
        return scene

    def _at_original_size(
        self, scene: Scene, mask_logits: np.ndarray, return_logits: bool
    ) -> np.ndarray:
        """Masks or logits; of masks, the floats of no more than one exist at a time."""
        upscaler, region = self._upscaler(scene.seen.resizer), scene.part
        shape = (*mask_logits.shape[:-2], *scene.size_hw)
        if return_logits:
            results = np.empty(shape, np.float32)
            if scene.region:
                results.fill(OUTSIDE_LOGIT)
            for index in np.ndindex(shape[:-3]):
                region.of(results[index])[:] = upscaler.whole(mask_logits[index])
            return results
        masks, threshold = np.zeros(shape, bool), self.config.mask_threshold

        def fill(index: tuple[int, ...]) -> None:
            upscaler.mask(mask_logits[index], threshold, region.of(masks[index]))

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            [*threads.map(fill, np.ndindex(shape[:-2]))]
        return masks


def _check_scores(scores: np.ndarray) -> None:
    """Raises FloatingPointError if the model rates a mask with no number: its masks are none."""
    if not np.isfinite(scores).all():
        raise FloatingPointError(
            "The model's scores are NaN or infinite, so its masks mean nothing. Its weights are "
            'damaged or diverged in training, or its numbers overflow: try dtype="float32".'
        )
