"""Functions of a Keras model as compiled graphs, by TensorFlow once for any number of prompts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import keras
import numpy as np
from keras import tree

from ..model.configuration_segment_anything import PADDING
from ..model.layers_tf import is_on_cpu

_MAKING = Lock()

_POSITIONS_AT_ONCE = {True: 1 << 15, False: 1 << 19}
"""Image tokens of all prompt sets that are decoded together, on a processor and elsewhere."""


class Graph:
    """A method of a model that runs as a graph, with TensorFlow or JAX; with PyTorch as it is.

    TensorFlow traces it once for any lengths of the free axes. JAX compiles it for each, which
    takes less than to compile each of its steps, as it would otherwise.

    Args:
        model: Whose weights it reads.
        function: Takes nested tuples of tensors, and None.
        free_axes: For each argument the axis whose length may differ from call to call, or None.
    """

    def __init__(self, model: Any, function: Callable, free_axes: tuple[int | None, ...]) -> None:
        """Traces nothing yet."""
        self._tracing = Lock()
        self.free_axes = free_axes
        self.traces = 0
        self._function = function
        self._signatures: set[str] = set()
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            self._function = tf.function(self._counted(function), autograph=False)
        elif keras.backend.backend() == "jax":
            self._function = _compiled_by_jax(model, self._counted(function))

    def _counted(self, function: Callable) -> Callable:
        def traced(*arguments: Any) -> Any:
            self.traces += 1
            return function(*arguments)

        return traced

    def __call__(self, *arguments: Any) -> Any:
        """The function's result; a new trace only where more than the free axes is new."""
        arguments = tree.map_structure(_as_tensor, arguments)
        if keras.backend.backend() == "tensorflow":
            specs = [
                tree.map_structure(lambda tensor, axis=axis: _spec(tensor, axis), argument)
                for argument, axis in zip(arguments, self.free_axes, strict=True)
            ]
            with self._tracing:  # two threads would trace the same graph
                if (signature := repr(specs)) not in self._signatures:
                    self._function.get_concrete_function(*specs)  # type: ignore[attr-defined]
                    self._signatures.add(signature)
        return self._function(*arguments)


def _compiled_by_jax(model: Any, function: Callable) -> Callable:
    """The function, given the model's weights of the moment: a compiled one would keep old ones."""
    import jax

    def stateless(values: list[Any], *arguments: Any) -> Any:
        with keras.StatelessScope(state_mapping=zip(model.variables, values, strict=True)):
            return function(*arguments)

    compiled = jax.jit(stateless)
    return lambda *arguments: compiled([w.value for w in model.variables], *arguments)


def _as_tensor(value: Any) -> Any:
    return None if value is None else keras.ops.convert_to_tensor(value)


def _spec(tensor: Any, free_axis: int | None) -> Any:
    from tensorflow import TensorSpec

    if tensor is None:
        return None
    shape = [None if axis == free_axis else size for axis, size in enumerate(tensor.shape)]
    return TensorSpec(shape, tensor.dtype)


class ModelGraphs:
    """What `KerasBackend` asks of a model, in graphs that live as long as the model."""

    def __init__(self, model: Any) -> None:
        """Prepares the graphs of a `TFSegmentAnythingModel`."""
        grid_hw = model.grid_size()
        selections = {True: slice(1, None), False: slice(0, 1)}
        self.encode = Graph(model, model.get_image_embeddings, (0,))
        is_fast = model.mask_decoder.may_be_fast()

        def decode(image: Any, *prompts: Any, chosen: slice) -> Any:
            if is_fast:
                return model.decode_shared(image, *prompts, grid_hw, chosen)
            return model.decode(image, *prompts, None, chosen)

        self.share: Callable = Graph(model, model.share, (None,)) if is_fast else _as_it_is
        self.decode = {
            multiple: Graph(model, partial(decode, chosen=chosen), (None, 1, 1, 1))
            for multiple, chosen in selections.items()
        }
        decode_with_masks = model.decode_fast if is_fast else model.decode
        self.decode_with_masks = {
            multiple: Graph(model, partial(decode_with_masks, selection=chosen), (None, 1, 1, 1, 1))
            for multiple, chosen in selections.items()
        }
        self.decode_above = None  # to JAX the number of masks must not depend on their quality
        if is_fast and keras.backend.backend() != "jax":
            self.decode_above = Graph(
                model,
                lambda shared, points, labels, threshold: model.decode_above(
                    shared, points, labels, grid_hw, threshold
                ),
                (None, 1, 1, None),
            )

    @classmethod
    def of(cls, model: Any) -> ModelGraphs:
        """The model's graphs, made when they are first asked for.

        They are made anew when a layer got other weights, adapters or weights of another kind: a
        graph keeps what it was traced with.
        """
        state = [model.mask_decoder.may_be_fast(), *map(id, model.variables)]
        with _MAKING:  # two threads would trace all graphs twice
            kept = getattr(model, "_graphs", None)
            if kept is None or kept[0] != state:
                kept = model._graphs = state, cls(model)
            return kept[1]


def _as_it_is(image_embeddings: Any) -> Any:
    return image_embeddings


def as_embeddings(image_embeddings: Any, dtype: str) -> Any:
    """An array as a tensor of this type; a tensor of Keras' backend as it is.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(image_embeddings, np.ndarray):
        return keras.ops.convert_to_tensor(image_embeddings, dtype)
    if not keras.ops.is_tensor(image_embeddings):
        raise TypeError(
            "Image embeddings must be a tensor of Keras' backend or an array of numpy, got "
            f"{type(image_embeddings).__name__}."
        )
    return image_embeddings


def prompt_groups(count: int, grid_hw: tuple[int, int]) -> list[slice]:
    """Prompt sets that are decoded together: so many that their image tokens fit the cache."""
    length = max(1, _POSITIONS_AT_ONCE[is_on_cpu()] // (grid_hw[0] * grid_hw[1]))
    return [slice(start, start + length) for start in range(0, count, length)]


def padded_prompts(
    points: np.ndarray | None, labels: np.ndarray | None, boxes: np.ndarray | None
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Prompts (P, M, ...) completed with padding to a power of two of M, to save traces.

    Padding is invisible to the model.
    """

    def pad(prompt: np.ndarray | None, dtype: type) -> np.ndarray | None:
        if prompt is None:
            return None
        count = prompt.shape[1]
        missing = (1 << max(0, count - 1).bit_length()) - count
        widths = [(0, 0), (0, missing), *[(0, 0)] * (prompt.ndim - 2)]
        return np.pad(prompt.astype(dtype), widths, constant_values=PADDING)

    return pad(points, np.float32), pad(labels, np.int32), pad(boxes, np.float32)
