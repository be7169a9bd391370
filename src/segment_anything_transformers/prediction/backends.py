"""The few calls that predictor and generator need of a model, in numpy, for any framework.

No framework is imported before a model of it is used. A further one joins with a class that has the
methods of `Backend` and one line in `_ADAPTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from threading import Lock
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np

from ..model.configuration_segment_anything import SegmentAnythingModelConfig


@runtime_checkable
class Backend(Protocol):
    """A model seen from numpy. Nothing it does builds gradients."""

    name: str
    config: SegmentAnythingModelConfig

    @property
    def encodes_aside(self) -> bool:
        """Whether one thread can encode while another decodes without either being slower."""
        ...

    def encode_images(self, pixel_values: np.ndarray) -> Any:
        """Embeddings of N images, in the framework's own form.

        Args:
            pixel_values: (N, C, H, W) float32, normalised and padded.

        Returns:
            Something of length N whose slices `decode` understands.
        """
        ...

    def to_numpy(self, image_embeddings: Any) -> np.ndarray:
        """What `encode_images` returned for one image, as an array (1, D, H'', W'') of float32."""
        ...

    def from_numpy(self, image_embeddings: Any) -> Any:
        """What `to_numpy` returned, in the framework's own form; what has it already as it is.

        Raises:
            TypeError: It is neither.
            ValueError: It has not the shape of one image's embeddings; the message says which.
        """
        ...

    def decode(
        self,
        image_embeddings: Any,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
        multimask_output: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mask logits and predicted quality for P independent prompts of one image.

        Args:
            image_embeddings: Those of one image, (1, D, H'', W'').
            points: (P, M1, 2) float32, x and y in model-input pixels.
            labels: (P, M1), 1 foreground, 0 background, -1 not a point. Given with `points`.
            boxes: (P, M2, 4) float32, left, top, right, bottom in model-input pixels.
            masks: (P, M3, H', W') float32 logits.
            multimask_output: Whether each prompt gets K masks, or 1.

        Returns:
            Logits (P, K, H', W') float32 and scores (P, K) float32. P is 1 without any prompt.
        """
        ...

    def decode_above(
        self, image_embeddings: Any, points: np.ndarray, labels: np.ndarray, iou_threshold: float
    ) -> GoodMasks:
        """Of the K masks of each prompt, those whose predicted quality exceeds a threshold.

        A model knows the quality before it makes a mask, and need not make the others.

        Args:
            image_embeddings: Those of one image, (1, D, H'', W'').
            points: (P, M1, 2) float32, x and y in model-input pixels.
            labels: (P, M1), 1 foreground, 0 background, -1 not a point.
            iou_threshold: Scores have to be above it. Those that are NaN come too, so that they
                are noticed.
        """
        ...


class GoodMasks(NamedTuple):
    """n masks that a model itself rates well, ordered by prompt, then by mask."""

    mask_logits: np.ndarray
    """(n, H', W') float32."""
    iou_scores: np.ndarray
    """(n,) float32."""
    prompts: np.ndarray
    """(n,) int64, the prompt that each belongs to."""

    @classmethod
    def above(cls, iou_threshold: float, mask_logits: np.ndarray, iou_scores: np.ndarray) -> Self:
        """Of logits (P, K, H', W') and scores (P, K), those above the threshold, and NaN."""
        prompts, masks = np.nonzero(~(iou_scores <= iou_threshold))
        return cls(mask_logits[prompts, masks], iou_scores[prompts, masks], prompts)


def _check_embeddings(
    shape: tuple[int, ...], config: SegmentAnythingModelConfig, is_channels_last: bool = False
) -> None:
    """Raises ValueError for another shape than that of one image's embeddings."""
    grid_hw = config.grid_size()
    expected = (
        (1, *grid_hw, config.embed_dim) if is_channels_last else (1, config.embed_dim, *grid_hw)
    )
    if tuple(shape) != expected:
        raise ValueError(
            f"This model's image embeddings have the shape {expected}, got {tuple(shape)}: they "
            "are of another model, of several images, or in another order of axes."
        )


_LOCK = Lock()
_EVALUATED: dict[int, tuple[int, list[Any]]] = {}
"""Of models that threads run: how many threads, and the modules that were in training mode."""


@contextmanager
def _evaluation(model: Any) -> Iterator[None]:
    """No dropout inside; after the last thread has left, every module is in the mode it was in."""
    with _LOCK:
        threads, in_training = _EVALUATED.get(id(model), (0, []))
        in_training += [module for module in model.modules() if module.training]
        _EVALUATED[id(model)] = threads + 1, in_training
        for module in in_training:
            module.training = False
    try:
        yield
    finally:
        with _LOCK:
            threads, in_training = _EVALUATED.pop(id(model))
            if threads > 1:
                _EVALUATED[id(model)] = threads - 1, in_training
            else:
                for module in in_training:
                    module.training = True


def _precision(dtype: Any) -> str:
    """The name of a precision that encoders run in; ValueError for others."""
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16", "int8"):
        raise ValueError(
            f'dtype must be "float32", "bfloat16", "float16" or "int8", got {name!r}. None '
            "keeps the precision that the model has."
        )
    return name


def with_encoder_in(model: Any, dtype: Any) -> Any:
    """The PyTorch model itself, its encoder changed to a precision that `TorchBackend` takes."""
    import torch

    name = _precision(dtype)
    if name == "int8":
        from .int8_linear import use_int8_linears

        return use_int8_linears(model)
    model.image_encoder.to(getattr(torch, name))
    return model


class TorchBackend:
    """A PyTorch `SegmentAnythingModel`, run on the device it is on, in the precision it has.

    Args:
        model: The model.
        dtype: Another precision to run the encoder in, "float32", "bfloat16", "float16" or
            PyTorch's own, or "int8" for its linear layers. The decoder, which takes little time
            and decides about every edge, keeps its precision.
    """

    name = "torch"

    def __init__(self, model: Any, dtype: Any = None) -> None:
        """Wraps a model without changing it; a copy of it where the precision is another."""
        import torch

        if dtype is not None and getattr(torch, _precision(dtype)) != model.dtype:
            model = with_encoder_in(deepcopy(model), dtype)
        self.model = model
        self.config: SegmentAnythingModelConfig = model.config

    @property
    def encodes_aside(self) -> bool:
        """See `Backend.encodes_aside`. Two threads on a processor would share its cores."""
        return self.model.device.type == "cuda"

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients and no dropout inside."""
        import torch

        # Not inference_mode: embeddings made under it could never train a decoder.
        with _evaluation(self.model), torch.no_grad():
            yield

    def _tensor(self, array: np.ndarray | None, dtype: Any = None) -> Any:
        """The array on the model's device with an image axis of length 1 before it."""
        import torch

        if array is None:
            return None
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor.to(device=self.model.device, dtype=dtype)[None]

    def encode_images(self, pixel_values: np.ndarray) -> Any:
        """See `Backend.encode_images`."""
        with self._inference():
            if self.model.device.type == "cuda":
                return self._encode_on_own_stream(pixel_values)
            return self._encode(pixel_values)

    def _encode(self, pixel_values: np.ndarray) -> Any:
        return self.model.get_image_embeddings(self._tensor(pixel_values)[0])

    def _encode_on_own_stream(self, pixel_values: np.ndarray) -> Any:
        """Embeddings that are complete: on one stream, masks would wait for the next image."""
        import torch

        callers = torch.cuda.current_stream(self.model.device)
        stream = torch.cuda.Stream(self.model.device)
        stream.wait_stream(callers)  # which may still be writing weights
        with torch.cuda.stream(stream):
            embeddings = self._encode(pixel_values)
        stream.synchronize()
        embeddings.record_stream(callers)
        return embeddings

    def to_numpy(self, image_embeddings: Any) -> np.ndarray:
        """See `Backend.to_numpy`."""
        return image_embeddings.detach().float().cpu().numpy()

    def from_numpy(self, image_embeddings: Any) -> Any:
        """See `Backend.from_numpy`."""
        import torch

        if isinstance(image_embeddings, np.ndarray):
            image_embeddings = torch.from_numpy(np.ascontiguousarray(image_embeddings))
        if not isinstance(image_embeddings, torch.Tensor):
            raise TypeError(
                "Image embeddings must be a tensor of PyTorch or an array of numpy, got "
                f"{type(image_embeddings).__name__}."
            )
        _check_embeddings(tuple(image_embeddings.shape), self.config)
        return image_embeddings.to(self.model.device)

    def decode(
        self,
        image_embeddings: Any,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
        multimask_output: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.decode`."""
        with self._inference():
            output = self.model(
                image_embeddings=image_embeddings,
                input_points=self._tensor(points),
                input_labels=self._tensor(labels),
                input_boxes=self._tensor(boxes),
                input_masks=self._tensor(masks),
                multimask_output=multimask_output,
            )
            # numpy has no bfloat16
            mask_logits, iou_scores = output.pred_masks[0].float(), output.iou_scores[0].float()
            return mask_logits.cpu().numpy(), iou_scores.cpu().numpy()

    def decode_above(
        self, image_embeddings: Any, points: np.ndarray, labels: np.ndarray, iou_threshold: float
    ) -> GoodMasks:
        """See `Backend.decode_above`."""
        with self._inference():
            mask_logits, iou_scores, prompts = self.model.decode_above(
                image_embeddings, self._tensor(points), self._tensor(labels), iou_threshold
            )
            arrays = mask_logits.float(), iou_scores.float(), prompts
            return GoodMasks(*(array.cpu().numpy() for array in arrays))


class KerasBackend:
    """A `TFSegmentAnythingModel`, on whichever backend of Keras it was made."""

    name = "tensorflow"
    encodes_aside = False

    def __init__(self, model: Any, dtype: Any = None) -> None:
        """Wraps a model without changing it."""
        if dtype is not None:
            raise ValueError(
                f"A Keras model keeps the precision it was made in, got dtype={dtype!r}. Load it "
                "with from_pretrained(..., dtype=...)."
            )
        self.model = model
        self.config: SegmentAnythingModelConfig = model.config

    def encode_images(self, pixel_values: np.ndarray) -> Any:
        """See `Backend.encode_images`."""
        return self._graphs.encode(pixel_values.transpose(0, 2, 3, 1))

    def to_numpy(self, image_embeddings: Any) -> np.ndarray:
        """See `Backend.to_numpy`."""
        return np.asarray(image_embeddings, np.float32).transpose(0, 3, 1, 2)

    def from_numpy(self, image_embeddings: Any) -> Any:
        """See `Backend.from_numpy`."""
        from .keras_graphs import as_embeddings

        if isinstance(image_embeddings, np.ndarray):
            _check_embeddings(image_embeddings.shape, self.config)
            image_embeddings = image_embeddings.transpose(0, 2, 3, 1)
        image_embeddings = as_embeddings(image_embeddings, self.model.compute_dtype)
        _check_embeddings(tuple(image_embeddings.shape), self.config, is_channels_last=True)
        return image_embeddings

    def decode(
        self,
        image_embeddings: Any,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
        multimask_output: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Backend.decode`."""
        graphs = self._graphs
        if masks is None:
            image, run = graphs.share(image_embeddings), graphs.decode[multimask_output]
        else:
            image, run = image_embeddings, graphs.decode_with_masks[multimask_output]
        parts = [run(image, *group) for group in self._groups(points, labels, boxes, masks)]
        logits, scores = (
            np.concatenate([np.asarray(part[0], np.float32) for part in column])
            for column in zip(*parts, strict=True)
        )
        return logits, scores

    def decode_above(
        self, image_embeddings: Any, points: np.ndarray, labels: np.ndarray, iou_threshold: float
    ) -> GoodMasks:
        """See `Backend.decode_above`. Of a prompt with any good mask it makes every mask.

        On JAX it makes all.
        """
        graphs = self._graphs
        if graphs.decode_above is None:
            made = self.decode(image_embeddings, points, labels, None, None, True)
            return GoodMasks.above(iou_threshold, *made)
        shared, threshold = graphs.share(image_embeddings), np.float32(iou_threshold)
        found: list[GoodMasks] = []
        start = 0
        for group in self._groups(points, labels, None, None):
            results = graphs.decode_above(shared, *group[:2], threshold)
            logits, scores, prompts = (np.asarray(result) for result in results)
            good = GoodMasks.above(
                iou_threshold, np.asarray(logits[0], np.float32), scores[prompts]
            )
            found.append(good._replace(prompts=start + prompts[good.prompts]))
            start += len(scores)
        return GoodMasks(*(np.concatenate(column) for column in zip(*found, strict=True)))

    @property
    def _graphs(self) -> Any:
        from .keras_graphs import ModelGraphs

        return ModelGraphs.of(self.model)

    def _groups(
        self,
        points: np.ndarray | None,
        labels: np.ndarray | None,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> Iterator[list[np.ndarray | None]]:
        """Prompts with an axis of the image in front, some prompt sets at a time."""
        from .keras_graphs import padded_prompts, prompt_groups

        prompts: list[np.ndarray | None] = [*padded_prompts(points, labels, boxes)]
        prompts += [] if masks is None else [masks]
        count = next((len(prompt) for prompt in prompts if prompt is not None), 1)
        for group in prompt_groups(count, self.config.grid_size()):
            yield [None if prompt is None else prompt[None, group] for prompt in prompts]


# The package that one of the model's base classes comes from, and what wraps such a model.
_ADAPTERS: dict[str, Callable[[Any, Any], Backend]] = {"torch": TorchBackend, "keras": KerasBackend}


def backend_for(model: Any, dtype: Any = None) -> Backend:
    """The model behind the calls of `Backend`, whichever framework it is written in.

    Args:
        model: A `SegmentAnythingModel`, or anything that already has the methods of `Backend`.
        dtype: The precision to run a PyTorch model in, by default the one it has.

    Raises:
        TypeError: If the model's framework has no adapter.
        ValueError: If the precision is none, or not to be chosen here.
    """
    if isinstance(model, Backend):
        return model
    frameworks = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    for framework, adapter in _ADAPTERS.items():
        if framework in frameworks and model_type == SegmentAnythingModelConfig.model_type:
            return adapter(model, dtype)
    raise TypeError(
        f"Expected a SegmentAnythingModel, got {type(model).__name__}. Models are loaded with "
        'SegmentAnythingModel.from_pretrained("sam_vit_t").'
    )
