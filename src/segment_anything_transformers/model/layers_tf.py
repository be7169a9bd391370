"""Layers that every part of the Keras model is made of.

Everything is channels last: images (N, H, W, C), image embeddings (N, H'', W'', D).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
from keras import layers, ops

from .export_tf_segment_anything import FOR_TFLITE


def gelu_exact(features: Any) -> Any:
    """As `ops.gelu` without approximation, for which TensorFlow takes a function thrice as slow.

    Written so that TensorFlow recognises it: after `affine` it costs next to nothing.
    """
    if FOR_TFLITE.get():  # which has that function and not this one
        return ops.gelu(features, approximate=False)
    return (ops.erf(features * math.sqrt(0.5)) + 1.0) * 0.5 * features


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": gelu_exact,
    "gelu_tanh": lambda features: ops.gelu(features, approximate=True),
    "hard_swish": ops.hard_silu,
    "mish": lambda features: features * ops.tanh(ops.softplus(features)),
    "relu": ops.relu,
    "relu6": ops.relu6,
    "silu": ops.silu,
    "swish": ops.silu,
}

_HIDDEN = -3e4
"""Added to the score of a token that does not exist: its weight is 0 in every precision."""

IS_LOADING: ContextVar[bool] = ContextVar("IS_LOADING", default=False)
"""Whether weights come from a file, so that none are drawn: JAX compiles the draw of each shape."""


@contextmanager
def policy_of_layers(policy: Any) -> Iterator[None]:
    """Gives the layers that are made inside a dtype policy of Keras: it does not reach them."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def uniform() -> Any:
    """Uniform within one over the root of the number of inputs, as the PyTorch class starts."""
    return _drawn(keras.initializers.VarianceScaling(1.0 / 3.0, "fan_in", "uniform"))


def normal() -> Any:
    """Normal with a deviation of one."""
    return _drawn(keras.initializers.RandomNormal(stddev=1.0))


def _drawn(initializer: keras.initializers.Initializer) -> Any:
    return "zeros" if IS_LOADING.get() else initializer


def dense(width: int, bias: bool = True) -> layers.Dense:
    """A linear layer with `width` outputs."""
    return layers.Dense(width, use_bias=bias, kernel_initializer=uniform())


def affine(rows: Any, kernel: Any, bias: Any) -> Any:
    """Rows (n, C) by a matrix (C, D), plus a bias (D): (n, D).

    On matrices TensorFlow computes product, bias and a following activation in one pass.
    """
    return ops.add(ops.matmul(rows, kernel), bias)


def convolution(width: int, kernel: int, bias: bool = True) -> layers.Conv2D:
    """A convolution with `width` outputs that keeps the size."""
    return layers.Conv2D(
        width,
        kernel,
        padding="same",
        data_format="channels_last",
        use_bias=bias,
        kernel_initializer=uniform(),
    )


def gelu() -> layers.Activation:
    """The exact GELU as a layer."""
    return layers.Activation(ACTIVATIONS["gelu"])


def chain(steps: list[layers.Layer], features: Any) -> Any:
    """What layers make of features one after the other."""
    for step in steps:
        features = step(features)
    return features


def build_chain(steps: list[layers.Layer], shape: tuple[int | None, ...]) -> None:
    """Makes the weights of such layers, for features of this shape."""
    for step in steps:
        step.build(shape)
        shape = step.compute_output_shape(shape)


class Norm(layers.LayerNormalization):
    """Layer norm over the channels, with Meta's epsilon of 1e-6 and fewer passes than Keras'."""

    def __init__(self, eps: float = 1e-6) -> None:
        """Starts as the identity after normalisation."""
        super().__init__(epsilon=eps)

    def call(self, inputs: Any) -> Any:
        """Features of mean 0 and variance 1 over the channels, then scaled and shifted."""
        features = ops.cast(inputs, "float32")
        features = centred(features)
        variance = ops.mean(ops.square(features), axis=-1, keepdims=True)
        scale = ops.rsqrt(variance + self.epsilon) * ops.cast(self.gamma, "float32")
        return ops.cast(features * scale + ops.cast(self.beta, "float32"), self.compute_dtype)


def centred(features: Any) -> Any:
    """Features of mean 0 over the last axis."""
    return features - ops.mean(features, axis=-1, keepdims=True)


def embedding_neck(depth: int) -> list[layers.Layer]:
    """The end of an image encoder, from its width to that of image embeddings (N, H'', W'', D)."""
    return [
        convolution(depth, 1, bias=False),
        Norm(),
        convolution(depth, 3, bias=False),
        Norm(),
    ]


class Downscaling(layers.Conv2D):
    """Convolution whose patches do not overlap: a product of matrices."""

    def __init__(self, width: int, patch: int) -> None:
        """Maps each square of `patch` by `patch` pixels to one of `width` channels."""
        super().__init__(
            width, patch, patch, data_format="channels_last", kernel_initializer=uniform()
        )

    def call(self, inputs: Any) -> Any:
        """Maps (N, h * patch, w * patch, C) to (N, h, w, width); N may be 0."""
        patch, channels = self.kernel_size[0], inputs.shape[3]
        height, width = inputs.shape[1] // patch, inputs.shape[2] // patch
        if patch > 1:
            inputs = ops.reshape(inputs, (-1, height, patch, width, patch, channels))
            inputs = ops.swapaxes(inputs, 2, 3)
        rows = ops.reshape(inputs, (-1, height * width, patch * patch * channels))
        kernel = ops.reshape(self.kernel, (-1, self.filters))
        return ops.reshape(ops.matmul(rows, kernel) + self.bias, (-1, height, width, self.filters))


class Upscaling(layers.Conv2DTranspose):
    """Transposed convolution by a factor of two: a product of matrices, no patches overlap."""

    def __init__(self, width: int) -> None:
        """Maps each pixel to two by two pixels of `width` channels."""
        super().__init__(width, 2, 2, data_format="channels_last", kernel_initializer=uniform())

    def call(self, inputs: Any) -> Any:
        """Maps (n, h, w, C) to (n, 2 h, 2 w, width)."""
        height, width = inputs.shape[1:3]
        rows = ops.reshape(inputs, (-1, inputs.shape[3]))
        rows = affine(rows, self.matrix(rows.dtype), self.repeated_bias(rows.dtype))
        squares = ops.reshape(rows, (-1, height, width, 2, 2 * self.filters))
        return ops.reshape(ops.swapaxes(squares, 2, 3), (-1, 2 * height, 2 * width, self.filters))

    def matrix(self, dtype: Any) -> Any:
        """The kernel (C, 4 width): four pixels of each, row by row."""
        kernel = ops.reshape(ops.cast(self.kernel, dtype), (4 * self.filters, -1))
        return ops.transpose(kernel)

    def centred_matrix(self, dtype: Any) -> Any:
        """As `matrix`, with each pixel's mean over the channels taken off."""
        matrix = ops.reshape(self.matrix(dtype), (-1, 4, self.filters))
        return ops.reshape(centred(matrix), (-1, 4 * self.filters))

    def repeated_bias(self, dtype: Any) -> Any:
        """The bias (4 width), once for each of the four pixels."""
        return ops.tile(ops.cast(self.bias, dtype), (4,))


class Embedding(layers.Layer):
    """Learned vectors that stand for something without a position."""

    def __init__(self, rows: int, width: int) -> None:
        """Makes `rows` vectors."""
        super().__init__()
        self.shape = (rows, width)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Starts from a normal distribution."""
        self.weight = self.add_weight(shape=self.shape, initializer=normal(), name="weight")
        self.built = True

    @property
    def vectors(self) -> Any:
        """The vectors (rows, D) in the precision of the computation."""
        return ops.cast(self.weight, self.compute_dtype)


class Perceptron(layers.Layer):
    """Two linear layers with an activation between them."""

    def __init__(
        self, width: int, hidden: int, activation: Callable[[Any], Any], drop: float = 0.0
    ) -> None:
        """Maps `width` to `hidden` and back; `drop` acts after each layer in training."""
        super().__init__()
        self.width, self.hidden = width, hidden
        self.lin1, self.lin2 = dense(hidden), dense(width)
        self.activation = activation
        self.drop = layers.Dropout(drop)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.lin1.build((None, self.width))
        self.lin2.build((None, self.hidden))
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        """Transforms each token on its own.

        As the rows of a matrix: see `affine`, which is what a layer does of a matrix.
        """
        rows = self.lin1(ops.reshape(x, (-1, self.width)))
        hidden = ops.reshape(self.activation(rows), (*ops.shape(x)[:-1], self.hidden))
        return self.drop(self.lin2(self.drop(hidden, training=training)), training=training)


def attend(query: Any, key: Any, value: Any, bias: Any, drop: Any, training: bool) -> Any:
    """Softmax attention over the last but one axis; `bias` adds to the scaled scores."""
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = ops.matmul(query * scale, ops.swapaxes(key, -2, -1))
    weights = ops.softmax(scores if bias is None else scores + bias, axis=-1)
    return ops.matmul(weights if drop is None else drop(weights, training=training), value)


def hiding(exists: Any, dtype: Any) -> Any:
    """What added to scores makes an attention pass over the tokens that do not exist."""
    return ops.cast(ops.where(exists, 0.0, _HIDDEN), dtype)


def is_plain(layer: Any, types: frozenset[type]) -> bool:
    """Whether a layer computes just what its weights say, so that these may be used without it.

    It does not where another class or a call of its own is in its place, or where it has adapters
    or quantised weights.

    Args:
        layer: The layer; its children do not count.
        types: Classes of layers that are plain.
    """
    return (
        type(layer) in types
        and "call" not in vars(layer)
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
    )


def is_on_cpu() -> bool:
    """Whether Keras has nothing but processors."""
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())
