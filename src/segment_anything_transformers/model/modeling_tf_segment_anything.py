"""Segment Anything in Keras 3: the classes of the PyTorch file, in its order.

Everything is channels last: images (N, H, W, C), image embeddings (N, H'', W'', D), a grid of
tokens (N, H'', W'', C). Attributes carry the names of the original checkpoints, from which the
names of the weights follow. The numbers of images, of prompt sets and of prompts may be unknown
when a graph is traced; the size of the images has to be known.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import keras
import numpy as np
from huggingface_hub import split_state_dict_into_shards_factory
from keras import layers, ops
from safetensors.numpy import save_file
from transformers.utils import PushToHubMixin

from .checkpoints import SAFETENSORS_INDEX, load_checkpoint
from .configuration_segment_anything import (
    DECODER_DOWNSAMPLING,
    ENCODER_NORM_EPS,
    MASK_UPSCALING,
    PADDING,
    SegmentAnythingModelConfig,
)
from .export_tf_segment_anything import FOR_TFLITE, export_model
from .loss_tf_segment_anything import (
    check_values,
    interactive_loss,
    loss_of_all_masks,
    mask_iou,
    read_labels,
    resize_labels,
)
from .mask_ops import bilinear_matrix


def _gelu_exact(features: Any) -> Any:
    """As `ops.gelu` without approximation, for which TensorFlow takes a function thrice as slow.

    Written so that TensorFlow recognises it: after `_affine` it costs next to nothing.
    """
    if FOR_TFLITE.get():  # which has that function and not this one
        return ops.gelu(features, approximate=False)
    return (ops.erf(features * math.sqrt(0.5)) + 1.0) * 0.5 * features


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": _gelu_exact,
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

_BIAS_ELEMENTS = 1 << 24
"""Largest relative-position bias that is built at once, in elements an image (64 MiB in fp32)."""


_IS_LOADING: ContextVar[bool] = ContextVar("_IS_LOADING", default=False)
"""Whether weights come from a file, so that none are drawn: JAX compiles the draw of each shape."""


def _uniform() -> Any:
    """Uniform within one over the root of the number of inputs, as the PyTorch class starts."""
    return _drawn(keras.initializers.VarianceScaling(1.0 / 3.0, "fan_in", "uniform"))


def _normal() -> Any:
    return _drawn(keras.initializers.RandomNormal(stddev=1.0))


def _drawn(initializer: keras.initializers.Initializer) -> Any:
    return "zeros" if _IS_LOADING.get() else initializer


def _dense(width: int, bias: bool = True) -> layers.Dense:
    return layers.Dense(width, use_bias=bias, kernel_initializer=_uniform())


def _affine(rows: Any, kernel: Any, bias: Any) -> Any:
    """Rows (n, C) by a matrix (C, D), plus a bias (D): (n, D).

    On matrices TensorFlow computes product, bias and a following activation in one pass.
    """
    return ops.add(ops.matmul(rows, kernel), bias)


def _convolution(width: int, kernel: int, bias: bool = True) -> layers.Conv2D:
    return layers.Conv2D(
        width,
        kernel,
        padding="same",
        data_format="channels_last",
        use_bias=bias,
        kernel_initializer=_uniform(),
    )


def _gelu() -> layers.Activation:
    return layers.Activation(_ACTIVATIONS["gelu"])


def _chain(steps: list[layers.Layer], features: Any) -> Any:
    for step in steps:
        features = step(features)
    return features


def _build_chain(steps: list[layers.Layer], shape: tuple[int | None, ...]) -> None:
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
        centred = _centred(features)
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
        scale = ops.rsqrt(variance + self.epsilon) * ops.cast(self.gamma, "float32")
        return ops.cast(centred * scale + ops.cast(self.beta, "float32"), self.compute_dtype)


def _centred(features: Any) -> Any:
    return features - ops.mean(features, axis=-1, keepdims=True)


class Downscaling(layers.Conv2D):
    """Convolution whose patches do not overlap: a product of matrices."""

    def __init__(self, width: int, patch: int) -> None:
        """Maps each square of `patch` by `patch` pixels to one of `width` channels."""
        super().__init__(
            width, patch, patch, data_format="channels_last", kernel_initializer=_uniform()
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
    """Transposed convolution by a factor of two: a product of matrices, as patches do not overlap.

    The mask decoder computes it from the parts, see `MaskDecoder.masks`.
    """

    def __init__(self, width: int) -> None:
        """Maps each pixel to two by two pixels of `width` channels."""
        super().__init__(width, 2, 2, data_format="channels_last", kernel_initializer=_uniform())

    def matrix(self, dtype: Any) -> Any:
        """The kernel (C, 4 width): four pixels of each, row by row."""
        kernel = ops.reshape(ops.cast(self.kernel, dtype), (4 * self.filters, -1))
        return ops.transpose(kernel)

    def centred_matrix(self, dtype: Any) -> Any:
        """As `matrix`, with each pixel's mean over the channels taken off."""
        matrix = ops.reshape(self.matrix(dtype), (-1, 4, self.filters))
        return ops.reshape(_centred(matrix), (-1, 4 * self.filters))

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
        self.weight = self.add_weight(shape=self.shape, initializer=_normal(), name="weight")
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
        self.lin1, self.lin2 = _dense(hidden), _dense(width)
        self.activation = activation
        self.drop = layers.Dropout(drop)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.lin1.build((None, self.width))
        self.lin2.build((None, self.hidden))
        self.built = True

    def call(self, x: Any, training: bool = False) -> Any:
        """Transforms each token on its own.

        As the rows of a matrix: see `_affine`, which is what a layer does of a matrix.
        """
        rows = self.lin1(ops.reshape(x, (-1, self.width)))
        hidden = ops.reshape(self.activation(rows), (*ops.shape(x)[:-1], self.hidden))
        return self.drop(self.lin2(self.drop(hidden, training=training)), training=training)


# ------------------------------------------------------------------------------ image encoder


def _attend(query: Any, key: Any, value: Any, bias: Any, drop: Any, training: bool) -> Any:
    """Softmax attention over the last but one axis; `bias` adds to the scaled scores."""
    scale = 1.0 / math.sqrt(query.shape[-1])
    scores = ops.matmul(query * scale, ops.swapaxes(key, -2, -1))
    weights = ops.softmax(scores if bias is None else scores + bias, axis=-1)
    return ops.matmul(weights if drop is None else drop(weights, training=training), value)


def _relative_positions(table: Any, size: int) -> Any:
    """Rows of a relative-position table for every query and key of an axis: (size, size, c)."""
    distances = 2 * size - 1
    if table.shape[0] != distances:
        table = ops.matmul(bilinear_matrix(table.shape[0], distances), table)
    positions = np.arange(size)
    indices = positions[:, None] - positions[None, :] + (size - 1)
    return ops.reshape(ops.take(table, indices.ravel(), axis=0), (size, size, -1))


class EncoderAttention(layers.Layer):
    """Multi-head attention inside windows (or one window of the whole grid).

    Relative positions add to the scores, decomposed by axis (arXiv:2112.01526).
    """

    def __init__(self, config: SegmentAnythingModelConfig, is_global: bool) -> None:
        """Makes the tables of relative positions for the grid or for the window."""
        super().__init__()
        self.width = config.encoder_embed_dim
        self.heads = config.encoder_nb_heads
        self.window_size = 0 if is_global else config.encoder_window_size
        self.grid_hw = config.grid_size()
        self.qkv = _dense(3 * self.width, config.encoder_qkv_bias)
        self.proj = _dense(self.width)
        self.drop = layers.Dropout(config.encoder_drop_rate)
        self.drop_attention = layers.Dropout(config.encoder_attn_drop_rate)

    def _window_hw(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        return (self.window_size, self.window_size) if self.window_size else grid_hw

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.qkv.build((None, self.width))
        self.proj.build((None, self.width))
        window_h, window_w = self._window_hw(self.grid_hw)
        depth = self.width // self.heads
        for name, side in (("rel_pos_h", window_h), ("rel_pos_w", window_w)):
            table = self.add_weight(shape=(2 * side - 1, depth), initializer="zeros", name=name)
            setattr(self, name, table)
        self.built = True

    def call(self, tokens: Any, training: bool = False) -> Any:
        """Mixes the tokens of each window: (N, H'', W'', C) to the same shape."""
        grid_h, grid_w = tokens.shape[1:3]
        window_hw = self._window_hw((grid_h, grid_w))
        query, key, value = self._windows(self.qkv(tokens), window_hw)
        mixed = self._mix(query, key, value, window_hw, training)
        mixed = self._grid(mixed, (grid_h, grid_w), window_hw)[:, :grid_h, :grid_w]
        return self.drop(self.proj(mixed), training=training)

    def _windows(self, qkv: Any, window_hw: tuple[int, int]) -> list[Any]:
        """Queries, keys and values by window: three (N * windows, heads, h * w, c)."""
        window_h, window_w = window_hw
        qkv = self._pad(qkv, -qkv.shape[1] % window_h, -qkv.shape[2] % window_w)
        rows, columns = qkv.shape[1] // window_h, qkv.shape[2] // window_w
        if rows * columns > 1:
            qkv = ops.reshape(qkv, (-1, rows, window_h, columns, window_w, 3 * self.width))
            qkv = ops.transpose(qkv, (0, 1, 3, 2, 4, 5))
        by_head = (-1, window_h * window_w, self.heads, self.width // self.heads)
        qkv = ops.reshape(qkv, (-1, window_h * window_w, 3 * self.width))
        parts = (ops.reshape(part, by_head) for part in ops.split(qkv, 3, axis=-1))
        return [ops.swapaxes(part, 1, 2) for part in parts]

    def _pad(self, qkv: Any, pad_h: int, pad_w: int) -> Any:
        """Completes the last windows with the projection of zeros, which is the bias."""
        if not (pad_h or pad_w):
            return qkv
        height, width = qkv.shape[1:3]
        padded = ops.pad(qkv, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)))
        if not self.qkv.use_bias:
            return padded
        is_padding = np.ones((height + pad_h, width + pad_w, 1), bool)
        is_padding[:height, :width] = False
        return ops.where(is_padding, ops.cast(self.qkv.bias, qkv.dtype), padded)

    def _mix(
        self, query: Any, key: Any, value: Any, window_hw: tuple[int, int], training: bool
    ) -> Any:
        """Attention with relative positions, for some rows of queries at a time.

        Windows and heads are one axis here, and 1 the next: TensorFlow then adds the positions in
        the product of queries and keys, not in a pass of their own.
        """
        window_h, window_w = window_hw
        depth = query.shape[-1]
        rows = ops.reshape(query, (-1, window_h, window_w, depth))
        key, value = (ops.reshape(x, (-1, 1, window_h * window_w, depth)) for x in (key, value))
        positions_h = ops.cast(_relative_positions(self.rel_pos_h, window_h), query.dtype)
        positions_w = ops.cast(_relative_positions(self.rel_pos_w, window_w), query.dtype)
        step = max(1, _BIAS_ELEMENTS // (self.heads * window_h * window_w**2))
        mixed = []
        for start in range(0, window_h, step):
            part = rows[:, start : start + step]
            count = part.shape[1]
            bias_h = ops.einsum("bhwc,hkc->bhwk", part, positions_h[start : start + step])
            bias_w = ops.einsum("bhwc,wkc->bhwk", part, positions_w)
            bias = ops.expand_dims(bias_h, -1) + ops.expand_dims(bias_w, -2)  # (B, rows, w, h, w)
            bias = ops.reshape(bias, (-1, 1, count * window_w, window_h * window_w))
            queries = ops.reshape(part, (-1, 1, count * window_w, depth))
            mixed.append(_attend(queries, key, value, bias, self.drop_attention, training))
        together = mixed[0] if len(mixed) == 1 else ops.concatenate(mixed, axis=2)
        return ops.reshape(together, (-1, self.heads, window_h * window_w, depth))

    def _grid(self, mixed: Any, grid_hw: tuple[int, int], window_hw: tuple[int, int]) -> Any:
        """Puts windows back side by side: (N, padded H'', padded W'', C)."""
        window_h, window_w = window_hw
        rows, columns = -(-grid_hw[0] // window_h), -(-grid_hw[1] // window_w)
        grid = ops.swapaxes(mixed, 1, 2)
        if rows * columns > 1:
            grid = ops.reshape(grid, (-1, rows, columns, window_h, window_w, self.width))
            grid = ops.transpose(grid, (0, 1, 3, 2, 4, 5))
        return ops.reshape(grid, (-1, rows * window_h, columns * window_w, self.width))


class EncoderBlock(layers.Layer):
    """Attention and perceptron, each normalised before and added to its input."""

    def __init__(self, config: SegmentAnythingModelConfig, index: int) -> None:
        """Attends globally where the configuration lists `index`, else in windows."""
        super().__init__()
        self.width, eps = config.encoder_embed_dim, ENCODER_NORM_EPS[config.encoder_norm_layer]
        is_global = index in config.encoder_global_attn_indices or not config.encoder_window_size
        self.norm1 = Norm(eps)
        self.attn = EncoderAttention(config, is_global)
        self.norm2 = Norm(eps)
        self.mlp = Perceptron(
            self.width,
            int(self.width * config.encoder_mlp_ratio),
            _ACTIVATIONS[config.encoder_act_layer],
            config.encoder_drop_rate,
        )
        last = max(1, config.encoder_nb_blocks - 1)
        # One random number an image: its whole branch stays or goes (arXiv:1603.09382).
        rate = config.encoder_drop_path_rate * index / last
        self.drop_path = layers.Dropout(rate, noise_shape=(None, 1, 1, 1))

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in (self.norm1, self.attn, self.norm2, self.mlp):
            layer.build((None, None, None, self.width))
        self.built = True

    def call(self, tokens: Any, training: bool = False) -> Any:
        """Refines the tokens: (N, H'', W'', C) to the same shape."""
        branch = self.attn(self.norm1(tokens), training=training)
        tokens = tokens + self.drop_path(branch, training=training)
        branch = self.mlp(self.norm2(tokens), training=training)
        return tokens + self.drop_path(branch, training=training)


class PatchEmbedding(layers.Layer):
    """One token for each patch of the image."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """A convolution whose kernel and stride are the patch size."""
        super().__init__()
        patch = config.encoder_patch_size
        self.channels = config.in_channels
        self.proj = Downscaling(config.encoder_embed_dim, patch)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.proj.build((None, None, None, self.channels))
        self.built = True

    def call(self, images: Any) -> Any:
        """Tokens (N, H'', W'', C) of images (N, H, W, C)."""
        return self.proj(images)


class ImageEncoder(layers.Layer):
    """Vision transformer with windowed and global attention, and a convolutional neck."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the blocks that the configuration describes."""
        super().__init__()
        self.config, depth = config, config.embed_dim
        self.patch_embed = PatchEmbedding(config)
        self.drop = layers.Dropout(config.encoder_drop_rate)
        self.blocks = [EncoderBlock(config, i) for i in range(config.encoder_nb_blocks)]
        self.neck = [
            _convolution(depth, 1, bias=False),
            Norm(),
            _convolution(depth, 3, bias=False),
            Norm(),
        ]

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        width = self.config.encoder_embed_dim
        self.patch_embed.build()
        self.pos_embed = self.add_weight(
            shape=(1, *self.config.grid_size(), width), initializer="zeros", name="pos_embed"
        )
        for block in self.blocks:
            block.build()
        _build_chain(self.neck, (None, None, None, width))
        self.built = True

    def call(self, images: Any, training: bool = False) -> Any:
        """Image embeddings (N, H'', W'', D) of normalised, padded images (N, H, W, C)."""
        tokens = self.patch_embed(images)
        positions = ops.cast(self._positions(*tokens.shape[1:3]), tokens.dtype)
        tokens = self.drop(tokens + positions, training=training)
        for block in self.blocks:
            tokens = block(tokens, training=training)
        return _chain(self.neck, tokens)

    def _positions(self, grid_h: int, grid_w: int) -> Any:
        """Absolute positions, resampled bilinearly for a grid of another size."""
        positions = ops.convert_to_tensor(self.pos_embed)
        _, given_h, given_w, _ = positions.shape
        if (given_h, given_w) == (grid_h, grid_w):
            return positions
        by_row = ops.einsum("yh,nhwc->nywc", bilinear_matrix(given_h, grid_h), positions)
        return ops.einsum("xw,nywc->nyxc", bilinear_matrix(given_w, grid_w), by_row)


# ----------------------------------------------------------------------------- prompt encoder


class PositionEncoding(layers.Layer):
    """Random Fourier features of positions in the image (arXiv:2006.10739), always in float32."""

    def __init__(self, width: int) -> None:
        """Draws the frequencies: a (2, width / 2) matrix for x and y."""
        super().__init__(dtype="float32")
        self.width = width

    def build(self, input_shape: Any = None) -> None:
        """Draws the frequencies; they do not learn."""
        self.positional_encoding_gaussian_matrix = self.add_weight(
            shape=(2, self.width // 2),
            initializer=_normal(),
            trainable=False,
            name="positional_encoding_gaussian_matrix",
        )
        self.built = True

    def call(self, points_xy: Any) -> Any:
        """Encodings (..., D) of points (..., 2) in [0, 1], x before y."""
        centred = 2.0 * points_xy - 1.0
        frequencies = ops.convert_to_tensor(self.positional_encoding_gaussian_matrix)
        # Written out: a product of matrices may be computed in a lower precision.
        angles = centred[..., :1] * frequencies[0] + centred[..., 1:] * frequencies[1]
        angles = 2.0 * math.pi * angles
        return ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)

    def of_grid(self, grid_h: int, grid_w: int) -> Any:
        """Encodings (H'', W'', D) of the centres of a grid's cells."""
        centres_y = (np.arange(grid_h, dtype=np.float32) + 0.5) / grid_h
        centres_x = (np.arange(grid_w, dtype=np.float32) + 0.5) / grid_w
        return self(np.stack(np.meshgrid(centres_x, centres_y), axis=-1))


class PromptEncoder(layers.Layer):
    """Embeds points and boxes as tokens and masks as a grid."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one embedding for each kind of point: background, foreground, two corners."""
        super().__init__(autocast=False)  # coordinates stay float32 in every precision
        width, hidden = config.embed_dim, config.prompt_mask_hidden_dim
        self.pe_layer = PositionEncoding(width)
        self.point_embeddings = [Embedding(1, width) for _ in range(4)]
        self.not_a_point_embed = Embedding(1, width)
        self.mask_downscaling = [
            Downscaling(hidden // 4, 2),
            Norm(),
            _gelu(),
            Downscaling(hidden, 2),
            Norm(),
            _gelu(),
            Downscaling(width, 1),
        ]
        self.no_mask_embed = Embedding(1, width)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.pe_layer.build()
        _build_chain(self.mask_downscaling, (None, None, None, 1))
        self.built = True

    def call(
        self,
        points: Any,
        labels: Any,
        boxes: Any,
        masks: Any,
        input_hw: tuple[int, int],
    ) -> tuple[Any, Any, Any]:
        """Embeds the prompts of every prompt set.

        Args:
            points: (N, P, M1, 2) in pixels of the model input, or None.
            labels: (N, P, M1), with points only.
            boxes: (N, P, M2, 4), or None.
            masks: (N, P or 1, M3, H', W') logits, or None; a mask of NaN does not exist.
            input_hw: Size (H, W) of the model input.

        Returns:
            Tokens (N, P, M, D), None without points and boxes. Dense embeddings
            (N or 1, P or 1, H'' or 1, W'' or 1, D). Which tokens exist (N, P, M), or None.
        """
        tokens, exists = self.tokens(points, labels, boxes, input_hw)
        return tokens, self.dense(masks), exists

    def dense(self, masks: Any) -> Any:
        """Dense embeddings of masks, or of there being none, see `call`."""
        no_mask = ops.reshape(self.no_mask_embed.vectors, (1, 1, 1, 1, -1))
        return no_mask if masks is None else self._embed_masks(masks, no_mask)

    def tokens(
        self, points: Any, labels: Any, boxes: Any, input_hw: tuple[int, int]
    ) -> tuple[Any, Any]:
        """Tokens of points and boxes; a set of points without a box ends in "not a point"."""
        parts, existing = [], []
        if points is not None:
            is_point = ops.not_equal(labels, PADDING)
            lacks_box = ops.any(is_point, axis=-1, keepdims=True)
            if boxes is not None:
                has_box = ops.any(_is_box(boxes), axis=-1, keepdims=True)
                lacks_box = ops.logical_and(lacks_box, ops.logical_not(has_box))
            images, sets = ops.shape(points)[:2]
            nothing = self.not_a_point_embed.vectors[None, None]
            nothing = ops.broadcast_to(nothing, (images, sets, 1, nothing.shape[-1]))
            parts += [self._embed_points(points, labels, input_hw), nothing]
            existing += [is_point, lacks_box]
        if boxes is not None:
            parts.append(self._embed_boxes(boxes, input_hw))
            existing.append(ops.repeat(_is_box(boxes), 2, axis=-1))
        if not parts:
            return None, None
        return ops.concatenate(parts, axis=2), ops.concatenate(existing, axis=-1)

    def _embed_points(self, points: Any, labels: Any, input_hw: tuple[int, int]) -> Any:
        """Tokens (N, P, M1, D): position and kind; -1 is a point without a position."""
        background, foreground = self.point_embeddings[0].vectors, self.point_embeddings[1].vectors
        positions = ops.cast(self._encode(points, input_hw), self.compute_dtype)
        kinds = ops.expand_dims(labels, -1)
        tokens = ops.where(ops.equal(kinds, 1), positions + foreground, positions)
        tokens = ops.where(ops.equal(kinds, 0), positions + background, tokens)
        return ops.where(ops.equal(kinds, -1), self.not_a_point_embed.vectors, tokens)

    def _embed_boxes(self, boxes: Any, input_hw: tuple[int, int]) -> Any:
        """Tokens (N, P, 2 M2, D) of the left top and right bottom corners."""
        corners = ops.stack([boxes[..., :2], boxes[..., 2:]], axis=3)  # (N, P, M2, 2, 2)
        kinds = ops.concatenate(
            [self.point_embeddings[2].vectors, self.point_embeddings[3].vectors], axis=0
        )
        tokens = ops.cast(self._encode(corners, input_hw), self.compute_dtype) + kinds
        images, sets, count = ops.shape(boxes)[:3]
        return ops.reshape(tokens, (images, sets, 2 * count, tokens.shape[-1]))

    def _encode(self, points_xy: Any, input_hw: tuple[int, int]) -> Any:
        """Position encodings of pixels; half a pixel moves their corner to their centre."""
        size_wh = np.array(input_hw[::-1], np.float32)
        return self.pe_layer((ops.cast(points_xy, "float32") + 0.5) / size_wh)

    def _embed_masks(self, masks: Any, no_mask: Any) -> Any:
        """Embeddings (N, P, H'', W'', D), summed over the masks of a prompt set."""
        images, sets, count = ops.shape(masks)[:3]
        height, width = masks.shape[3:]
        exists = ops.logical_not(ops.isnan(masks[..., 0, 0]))  # (N, P, M3)
        logits = ops.cast(ops.nan_to_num(masks), self.compute_dtype)
        embeddings = _chain(
            self.mask_downscaling, ops.reshape(logits, (images * sets * count, height, width, 1))
        )
        grid_shape = embeddings.shape[1:]
        flat = ops.reshape(embeddings, (images, sets, count, math.prod(grid_shape)))
        shown = ops.expand_dims(ops.cast(exists, embeddings.dtype), -1)
        summed = ops.reshape(ops.sum(flat * shown, axis=2), (images, sets, *grid_shape))
        is_given = ops.expand_dims(ops.any(exists, axis=-1), (-3, -2, -1))
        return ops.where(is_given, summed, no_mask)


def _is_box(boxes: Any) -> Any:
    """Which boxes exist: (N, P, M2) of (N, P, M2, 4)."""
    return ops.any(ops.not_equal(boxes, PADDING), axis=-1)


# ------------------------------------------------------------------------------- mask decoder


class PromptedImage(NamedTuple):
    """The image's tokens as each prompt set sees them, never written out.

    Whatever a prompt does to them, the tokens (N, P, L, D) remain a scaled copy of tokens that all
    prompt sets share, plus weighted sums of a few rows:

        scale * shared + weights^T rows + bias

    An attention to T prompt tokens adds h (T - 1) rows, since its output is such a sum; layer norm
    centres the rows and divides weights and scale. Every product with the tokens becomes one with
    the shared tokens, made once an image, and a small one with the rows.
    """

    scale: Any  # (N, P, 1, L)
    weights: Any  # (N, P, m, L)
    rows: Any  # (N, P, m, D)
    bias: Any  # (D)
    values: tuple[Any, ...]  # (N, P, h, t, c) of each attention that added rows


class ProjectedImage(NamedTuple):
    """A dense layer's output for the tokens that all prompt sets share, by head."""

    kernel: Any  # (D, h c), of the layer
    bias: Any  # (h c), of the layer
    shared: Any  # (N, S, h, c, L), S is P where masks tell the prompt sets' images apart, else 1
    positions: Any  # (h, c, L); None where the shared tokens have them added already

    @classmethod
    def of(cls, layer: layers.Dense, heads: int, shared: Any, positions: Any = None) -> Self:
        """Projects shared tokens (N, S, L, D) and positions (L, D), without the layer's bias."""
        kernel, bias = (ops.cast(weight, shared.dtype) for weight in (layer.kernel, layer.bias))
        by_head = (heads, kernel.shape[1] // heads, shared.shape[2])
        projected = ops.matmul(ops.transpose(kernel), ops.swapaxes(shared, 2, 3))
        projected = ops.reshape(projected, (*ops.shape(shared)[:2], *by_head))
        if positions is not None:
            positions = ops.matmul(ops.transpose(kernel), ops.transpose(positions))
            positions = ops.reshape(positions, by_head)
        return cls(kernel, bias, projected, positions)

    def scores(self, vectors: Any, image: PromptedImage | None) -> Any:
        """Products (N, P, h, T, L) of vectors (N, P, h, T, c) with every projected image token.

        What adds the same to all tokens of the image, its bias and the layer's, is left out.
        """
        of_shared = ops.matmul(vectors, self.shared)
        if image is None:
            return of_shared
        images, sets, heads, count, width = ops.shape(vectors)
        kernel = ops.transpose(ops.reshape(self.kernel, (-1, heads, width)), (1, 2, 0))
        vectors_of_rows = ops.reshape(
            ops.matmul(vectors, kernel), (images, sets, heads * count, kernel.shape[2])
        )
        of_rows = ops.matmul(vectors_of_rows, ops.swapaxes(image.rows, 2, 3))
        of_rows = ops.reshape(ops.matmul(of_rows, image.weights), ops.shape(of_shared))
        scores = of_rows + of_shared * ops.expand_dims(image.scale, 2)
        if self.positions is None:
            return scores
        return scores + ops.matmul(vectors, self.positions)

    def constant(self, image: PromptedImage | None) -> Any:
        """What the layer adds to all tokens of the image alike: (h, 1, c)."""
        bias = self.bias
        if image is not None:
            bias = bias + ops.matmul(image.bias[None], self.kernel)[0]
        return ops.reshape(bias, (self.shared.shape[2], 1, -1))

    def offsets(self, vectors: Any, image: PromptedImage | None) -> Any:
        """What `scores` leaves out: (N, P, h, T, 1)."""
        return ops.matmul(vectors, ops.swapaxes(self.constant(image), 1, 2))

    def mix(self, attention: Any, image: PromptedImage | None) -> Any:
        """Projected image tokens weighted by attention (N, P, h, T, L): (N, P, h, T, c)."""
        values = ops.swapaxes(self.shared, 3, 4)
        if image is None:
            return ops.matmul(attention, values) + self.constant(image)
        of_shared = ops.matmul(attention * ops.expand_dims(image.scale, 2), values)
        images, sets, heads, count, length = ops.shape(attention)
        row_weights = ops.matmul(
            ops.reshape(attention, (images, sets, heads * count, length)),
            ops.swapaxes(image.weights, 2, 3),
        )  # (N, P, hT, m)
        row_weights = ops.reshape(row_weights, (images, sets, heads, count, -1))
        rows = _by_head(ops.matmul(image.rows, self.kernel), heads)
        # attention sums to one
        return of_shared + ops.matmul(row_weights, rows) + self.constant(image)


def _by_head(tokens: Any, heads: int) -> Any:
    """Tokens (N, P, T, h c) as (N, P, h, T, c)."""
    *sizes, width = ops.shape(tokens)
    return ops.swapaxes(ops.reshape(tokens, (*sizes, heads, width // heads)), 2, 3)


class DecoderAttention(layers.Layer):
    """Multi-head attention whose inner width may be smaller than that of its input."""

    def __init__(
        self, config: SegmentAnythingModelConfig, downsampling: int = DECODER_DOWNSAMPLING
    ) -> None:
        """Projects to the embedding width over `downsampling`, and back."""
        super().__init__()
        self.width, self.heads = config.embed_dim, config.decoder_nb_heads
        self.inner = self.width // downsampling
        self.scale = (self.inner // self.heads) ** -0.5
        self.q_proj, self.k_proj = _dense(self.inner), _dense(self.inner)
        self.v_proj, self.out_proj = _dense(self.inner), _dense(self.width)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in (self.q_proj, self.k_proj, self.v_proj):
            layer.build((None, self.width))
        self.out_proj.build((None, self.inner))
        self.built = True

    def joined(self, mixed: Any) -> Any:
        """The output (N, P, T, D) of all heads (N, P, h, T, c)."""
        images, sets, _, count, _ = ops.shape(mixed)
        mixed = ops.reshape(ops.swapaxes(mixed, 2, 3), (images, sets, count, self.inner))
        return self.out_proj(mixed)


class SelfAttention(DecoderAttention):
    """The tokens of a prompt set attend to each other."""

    def call(self, placed: Any, tokens: Any, exists: Any) -> Any:
        """Attends from and to `placed`, (N, P, T, D) with positions, for values of `tokens`.

        Where `exists` (N, P, T) is False, a token is padding.
        """
        query, key = self.q_proj(placed), self.k_proj(placed)
        query, key, value = (
            _by_head(projected, self.heads) for projected in (query, key, self.v_proj(tokens))
        )
        bias = None
        if exists is not None:
            bias = ops.expand_dims(_hiding(exists, query.dtype), (2, 3))
        return self.joined(_attend(query, key, value, bias, None, False))


def _hiding(exists: Any, dtype: Any) -> Any:
    """What added to scores makes an attention pass over the tokens that do not exist."""
    return ops.cast(ops.where(exists, 0.0, _HIDDEN), dtype)


class TokenToImageAttention(DecoderAttention):
    """The tokens of a prompt set attend to the image."""

    def project(
        self, shared: Any, positions: Any, is_first: bool
    ) -> tuple[ProjectedImage, ProjectedImage]:
        """Keys and values of shared image tokens (N, S, L, D), for any prompt."""
        keys = _project_placed(self.k_proj, self.heads, shared, positions, is_first)
        return keys, ProjectedImage.of(self.v_proj, self.heads, shared)

    def call(
        self,
        placed: Any,
        projected: tuple[ProjectedImage, ProjectedImage],
        image: PromptedImage | None,
    ) -> Any:
        """What tokens (N, P, T, D), with their positions, see in the image."""
        keys, values = projected
        query = _by_head(self.q_proj(placed), self.heads) * self.scale
        attention = ops.softmax(keys.scores(query, image), axis=-1)
        return self.joined(values.mix(attention, image))


class ImageToTokenAttention(DecoderAttention):
    """The image attends to the tokens of a prompt set."""

    def project(self, shared: Any, positions: Any, is_first: bool) -> ProjectedImage:
        """Queries of shared image tokens (N, S, L, D), for any prompt."""
        return _project_placed(self.q_proj, self.heads, shared, positions, is_first)

    def call(
        self,
        placed: Any,
        tokens: Any,
        queries: ProjectedImage,
        image: PromptedImage | None,
        exists: Any,
    ) -> tuple[Any, Any, Any]:
        """What the image sees in the tokens, as weighted sums.

        Returns:
            Weights (N, P, m, L) and values (N, P, h, m / h, c) of the rows that are summed, before
            the output projection; and what every image token sees alike (N, P, D).
        """
        key = _by_head(self.k_proj(placed), self.heads) * self.scale
        value = _by_head(self.v_proj(tokens), self.heads)
        offsets = queries.offsets(key, image)
        if exists is not None:
            offsets = offsets + ops.expand_dims(_hiding(exists, key.dtype), (2, 4))
        scores = queries.scores(key, image) + offsets
        # Not ops.softmax: it would copy the scores to bring the tokens to the last axis and back.
        attention = ops.exp(scores - ops.max(scores, axis=3, keepdims=True))
        attention = attention / ops.sum(attention, axis=3, keepdims=True)
        images, sets, heads, count, width = ops.shape(value)
        if isinstance(count, int) and count <= width:
            # The weights of a head sum to one, so the first token needs no row.
            first = value[:, :, :, :1]
            weights, value, alike = attention[:, :, :, 1:], value[:, :, :, 1:] - first, first
        else:  # fewer rows: a head's own channels, weighted by what it sees of the tokens
            weights = ops.matmul(ops.swapaxes(value, 3, 4), attention)
            alike = ops.zeros_like(value[:, :, :, :1])
            value = ops.eye(width, dtype=value.dtype)
            value = ops.broadcast_to(value, (images, sets, heads, width, width))
        length, count = weights.shape[4], weights.shape[3]
        weights = ops.reshape(weights, (images, sets, heads * count, length))
        return weights, value, self.joined(alike)[:, :, 0]


def _project_placed(
    layer: layers.Dense, heads: int, shared: Any, positions: Any, is_first: bool
) -> ProjectedImage:
    """The projection of tokens and positions, in one where nothing scales the tokens yet."""
    if is_first:
        return ProjectedImage.of(layer, heads, shared + positions)
    return ProjectedImage.of(layer, heads, shared, positions)


class SharedNorm(NamedTuple):
    """What an `ImageNorm` needs to know of the tokens that all prompt sets share."""

    tokens: Any  # (N, S, L, D), centred
    squares: Any  # (N, S, 1, L) their mean squares
    directions: tuple[Any, ...]  # (N, S, h, c, L) their products with each attention's output

    @classmethod
    def of(cls, shared: Any, outputs: list[Any]) -> Self:
        """From shared tokens (N, S, L, D) and output weights (h, c, D) of the attentions so far."""
        tokens = _centred(shared)
        images, sets, length, width = ops.shape(tokens)
        scaled = ops.swapaxes(tokens / width, 2, 3)
        directions = tuple(
            ops.reshape(
                ops.matmul(ops.reshape(output, (-1, width)), scaled),
                (images, sets, *output.shape[:2], length),
            )
            for output in outputs
        )
        return cls(tokens, ops.mean(ops.square(tokens), axis=-1)[:, :, None], directions)

    def products(self, rows: Any, values: tuple[Any, ...]) -> Any:
        """Mean products (N, P, m, L) of the shared tokens with the rows.

        Rows of attentions are their values times an output weight, of which the product with the
        shared tokens is known. The others, one an attention, come first.
        """
        plain = rows[:, :, : len(values)] / rows.shape[-1]
        parts = [ops.matmul(plain, ops.swapaxes(self.tokens, 2, 3))]
        for value, direction in zip(values, self.directions, strict=True):
            product = ops.matmul(value, direction)
            images, sets, heads, count, length = ops.shape(product)
            parts.append(ops.reshape(product, (images, sets, heads * count, length)))
        return ops.concatenate(parts, axis=2)


class ImageNorm(layers.LayerNormalization):
    """Layer norm of image tokens that are never written out, see `PromptedImage`."""

    def call(self, image: PromptedImage, shared: SharedNorm) -> PromptedImage:
        """Tokens of mean 0 and variance 1 over the channels, then scaled and shifted.

        The variance is a quadratic form in scale and weights.
        """
        rows = _centred(image.rows)
        row_products = ops.matmul(rows / rows.shape[-1], ops.swapaxes(rows, 2, 3))  # (N, P, m, m)
        products = ops.matmul(row_products, image.weights)
        products = products + 2.0 * image.scale * shared.products(rows, image.values)
        variance = ops.sum(image.weights * products, axis=2, keepdims=True)
        variance = variance + ops.square(image.scale) * shared.squares
        deviation = ops.rsqrt(ops.maximum(variance, 0.0) + self.epsilon)
        gamma, beta = (ops.cast(weight, rows.dtype) for weight in (self.gamma, self.beta))
        return image._replace(
            scale=image.scale * deviation,
            weights=image.weights * deviation,
            rows=rows * gamma,
            bias=beta,
        )


class SharedBlock(NamedTuple):
    """What a `TwoWayBlock` needs to know of the tokens that all prompt sets share."""

    keys_values: tuple[ProjectedImage, ProjectedImage]
    queries: ProjectedImage
    norm: SharedNorm


class TwoWayBlock(layers.Layer):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, config: SegmentAnythingModelConfig, is_first: bool) -> None:
        """The first block's tokens are their own positions: it does not add them again."""
        super().__init__()
        self.width = config.embed_dim
        self.self_attn = SelfAttention(config, downsampling=1)
        self.norm1 = Norm(1e-5)
        self.cross_attn_token_to_image = TokenToImageAttention(config)
        self.norm2 = Norm(1e-5)
        self.mlp = Perceptron(self.width, config.decoder_mlp_channels, ops.relu)
        self.norm3 = Norm(1e-5)
        self.norm4 = ImageNorm(epsilon=1e-5)
        self.cross_attn_image_to_token = ImageToTokenAttention(config)
        self.is_first = is_first

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for norm in (self.norm1, self.norm2, self.norm3, self.norm4):
            norm.build((None, None, None, self.width))
        self.self_attn.build()
        self.cross_attn_token_to_image.build()
        self.mlp.build()
        self.cross_attn_image_to_token.build()
        self.built = True

    def share(
        self, shared: Any, positions: Any, outputs: list[Any]
    ) -> tuple[SharedBlock, Any, list[Any]]:
        """The part of the block's work that no prompt changes.

        Args:
            shared: (N, S, L, D) image tokens.
            positions: (L, D).
            outputs: (h, c, D), output weights of the attentions of earlier blocks to the tokens.

        Returns:
            The work, and shared tokens and output weights for the next block.
        """
        outputs = [_centred(output) for output in (*outputs, self._output(shared.dtype))]
        norm = SharedNorm.of(shared, outputs)
        block = SharedBlock(
            self.cross_attn_token_to_image.project(shared, positions, self.is_first),
            self.cross_attn_image_to_token.project(shared, positions, self.is_first),
            norm,
        )
        gamma = ops.cast(self.norm4.gamma, shared.dtype)
        return block, norm.tokens * gamma, [output * gamma for output in outputs]

    def _output(self, dtype: Any) -> Any:
        """Output weights (h, c, D) of the image's attention to the tokens."""
        attention = self.cross_attn_image_to_token
        kernel = ops.cast(attention.out_proj.kernel, dtype)
        return ops.reshape(kernel, (attention.heads, -1, self.width))

    def call(
        self,
        tokens: Any,
        image: PromptedImage | None,
        token_positions: Any,
        shared: SharedBlock,
        exists: Any,
    ) -> tuple[Any, PromptedImage]:
        """Refines the tokens (N, P, T, D) and the image, which is None in the first block."""
        placed = tokens if self.is_first else tokens + token_positions
        attended = self.self_attn(placed, tokens, exists)
        tokens = self.norm1(attended if self.is_first else tokens + attended)
        attended = self.cross_attn_token_to_image(
            tokens + token_positions, shared.keys_values, image
        )
        tokens = self.norm2(tokens + attended)
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self._attend_to_tokens(tokens, image, token_positions, shared.queries, exists)
        return tokens, self.norm4(image, shared.norm)

    def _attend_to_tokens(
        self,
        tokens: Any,
        image: PromptedImage | None,
        token_positions: Any,
        queries: ProjectedImage,
        exists: Any,
    ) -> PromptedImage:
        """The image with what it sees in the tokens added, and its bias as a row like others."""
        weights, values, alike = self.cross_attn_image_to_token(
            tokens + token_positions, tokens, queries, image, exists
        )
        rows = ops.matmul(values, self._output(values.dtype))  # (N, P, h, t, D)
        images, sets, heads, count, width = ops.shape(rows)
        rows = ops.reshape(rows, (images, sets, heads * count, width))
        ones = ops.ones_like(weights[:, :, :1])
        if image is None:
            return PromptedImage(
                ones,
                ops.concatenate([ones, weights], axis=2),
                ops.concatenate([alike[:, :, None], rows], axis=2),
                ops.zeros_like(alike[0, 0]),
                (values,),
            )
        return image._replace(
            weights=ops.concatenate([ones, image.weights, weights], axis=2),
            rows=ops.concatenate([(alike + image.bias)[:, :, None], image.rows, rows], axis=2),
            values=(*image.values, values),
        )


class SharedImage(NamedTuple):
    """The part of the decoder's work that no prompt changes."""

    blocks: tuple[SharedBlock, ...]
    last: tuple[ProjectedImage, ProjectedImage]
    tokens: Any  # (N, S, L, D), the shared part of the image's last tokens


class TwoWayTransformer(layers.Layer):
    """Lets the tokens of a prompt set and the image inform each other."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the blocks, and the tokens' last look at the image."""
        super().__init__()
        self.width = config.embed_dim
        self.layers = [TwoWayBlock(config, i == 0) for i in range(config.decoder_nb_blocks)]
        self.final_attn_token_to_image = TokenToImageAttention(config)
        self.norm_final_attn = Norm(1e-5)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in self.layers:
            layer.build()
        self.final_attn_token_to_image.build()
        self.norm_final_attn.build((None, None, None, self.width))
        self.built = True

    def share(self, image: Any, positions: Any) -> SharedImage:
        """Does the work that no prompt changes, for image tokens (N, S, L, D) and their positions.

        S is 1 where all prompt sets share the image, P where masks tell their images apart.
        """
        blocks: list[SharedBlock] = []
        outputs: list[Any] = []
        for layer in self.layers:
            block, image, outputs = layer.share(image, positions, outputs)
            blocks.append(block)
        last = self.final_attn_token_to_image.project(image, positions, is_first=False)
        return SharedImage(tuple(blocks), last, image)

    def call(self, tokens: Any, shared: SharedImage, exists: Any) -> tuple[Any, PromptedImage]:
        """Tokens (N, P, T, D) and image after all blocks.

        Args:
            tokens: (N, P, T, D), output tokens and prompts.
            shared: What `share` returns.
            exists: (N, P, T), False where a token is padding, or None.
        """
        positions = tokens
        image: Any = None  # as no block has changed it
        for layer, block in zip(self.layers, shared.blocks, strict=True):
            tokens, image = layer(tokens, image, positions, block, exists)
        attended = self.final_attn_token_to_image(tokens + positions, shared.last, image)
        return self.norm_final_attn(tokens + attended), image


class LayeredPerceptron(layers.Layer):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        """Maps `width` to `out` through `depth` layers."""
        super().__init__()
        self.widths = [width, *[hidden] * (depth - 1), out]
        self.layers = [_dense(after) for after in self.widths[1:]]

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer, before in zip(self.layers, self.widths, strict=False):
            layer.build((None, before))
        self.built = True

    def call(self, x: Any) -> Any:
        """Transforms the last axis."""
        for layer in self.layers[:-1]:
            x = ops.relu(layer(x))
        return self.layers[-1](x)


class DecodedPrompts(NamedTuple):
    """What is known of prompt sets before their masks are made."""

    iou_scores: Any  # (N, P, 1 + K)
    mask_tokens: Any  # (N, P, 1 + K, D)
    image: PromptedImage

    def take(self, indices: Any) -> Self:
        """Some of the prompt sets, by their numbers (n,)."""

        def some(tensor: Any) -> Any:
            return ops.take(tensor, indices, axis=1)

        scale, weights, rows, bias, _ = self.image
        image = PromptedImage(some(scale), some(weights), some(rows), bias, ())
        return self._replace(
            iou_scores=some(self.iou_scores), mask_tokens=some(self.mask_tokens), image=image
        )


class MaskDecoder(layers.Layer):
    """Predicts masks, and the quality of each, from image and prompts."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one output token for each mask and one for their quality."""
        super().__init__()
        self.width, self.masks_per_set = config.embed_dim, config.nb_multimask_outputs + 1
        width = self.width
        self.transformer = TwoWayTransformer(config)
        self.iou_token = Embedding(1, width)
        self.mask_tokens = Embedding(self.masks_per_set, width)
        self.output_upscaling = [
            Upscaling(width // 4),
            Norm(),
            _gelu(),
            Upscaling(width // 8),
            _gelu(),
        ]
        self.output_hypernetworks_mlps = [
            LayeredPerceptron(width, width, width // 8, 3) for _ in range(self.masks_per_set)
        ]
        self.iou_prediction_head = LayeredPerceptron(
            width, config.decoder_iou_hidden_dim, self.masks_per_set, config.decoder_iou_head_depth
        )

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.transformer.build()
        _build_chain(self.output_upscaling, (None, 1, 1, self.width))
        for perceptron in (*self.output_hypernetworks_mlps, self.iou_prediction_head):
            perceptron.build()
        self.built = True

    def share(self, image_embeddings: Any, image_positions: Any, dense_embeddings: Any) -> Any:
        """The part of the work that no prompt but masks changes.

        Args:
            image_embeddings: (N, H'', W'', D).
            image_positions: (H'', W'', D).
            dense_embeddings: (N or 1, P or 1, H'' or 1, W'' or 1, D).
        """
        image = ops.expand_dims(image_embeddings, 1) + dense_embeddings
        images, sets, height, width, depth = ops.shape(image)
        image = ops.reshape(image, (images, sets, height * width, depth))
        positions = ops.reshape(image_positions, (height * width, depth))
        shared = self.transformer.share(image, ops.cast(positions, image.dtype))
        kernel = self.output_upscaling[0].centred_matrix(image.dtype)
        return shared._replace(tokens=ops.matmul(shared.tokens, kernel))

    def decode(self, shared: SharedImage, prompt_tokens: Any, exists: Any) -> DecodedPrompts:
        """All that is known of the masks before they are made.

        Args:
            shared: What `share` returns.
            prompt_tokens: (N, P, M, D) or None.
            exists: (N, P, M), False where a prompt is padding, or None.
        """
        images, sets = ops.shape(shared.tokens)[:2]
        outputs = ops.concatenate([self.iou_token.vectors, self.mask_tokens.vectors], axis=0)
        if prompt_tokens is not None:
            sets = ops.shape(prompt_tokens)[1]
        tokens = ops.broadcast_to(outputs, (images, sets, *outputs.shape))
        if prompt_tokens is not None:
            tokens = ops.concatenate([tokens, prompt_tokens], axis=2)
            always = ops.ones((images, sets, outputs.shape[0]), "bool")
            exists = ops.concatenate([always, exists], axis=2)
        tokens, image = self.transformer(tokens, shared, exists)
        return DecodedPrompts(self.iou_prediction_head(tokens[:, :, 0]), tokens[:, :, 1:], image)

    def call(
        self,
        shared: SharedImage,
        prompt_tokens: Any,
        exists: Any,
        grid_hw: tuple[int, int],
        selection: slice,
    ) -> tuple[Any, Any]:
        """Predicts the selected masks of every prompt set.

        Args:
            shared: What `share` returns.
            prompt_tokens: (N, P, M, D) or None.
            exists: (N, P, M), False where a prompt is padding, or None.
            grid_hw: Size (H'', W'') of the image embeddings.
            selection: Which of the masks: 0 is the single one, the others are the multiple ones.

        Returns:
            Mask logits (N, P, K, H', W') and predicted qualities (N, P, K).
        """
        decoded = self.decode(shared, prompt_tokens, exists)
        logits = self.masks(decoded, shared, grid_hw, range(self.masks_per_set)[selection])
        return logits, decoded.iou_scores[..., selection]

    def masks(
        self,
        decoded: DecodedPrompts,
        shared: SharedImage,
        grid_hw: tuple[int, int],
        chosen: Sequence[int],
    ) -> Any:
        """Logits (N, P, K, H', W') of the chosen masks.

        Each mask's token weighs the channels of the upscaled image. A transposed convolution of
        stride and kernel 2 is a matrix product that makes four positions of one. They stay in
        that order until the masks, which are small, are sorted.
        """
        tokens = decoded.mask_tokens
        weights = ops.stack(
            [self.output_hypernetworks_mlps[k](tokens[:, :, k]) for k in chosen], axis=2
        )  # (N, P, K, D / 8)
        *_, second, last_activation = self.output_upscaling
        features = self._upscaled_once(decoded.image, shared.tokens)  # (N P 4 L, D / 4)
        kernel, bias = second.matrix(features.dtype), second.repeated_bias(features.dtype)
        features = last_activation(_affine(features, kernel, bias))
        images, sets, count, depth = ops.shape(weights)
        height, width = grid_hw
        features = ops.reshape(features, (images, sets, 16 * height * width, depth))
        logits = ops.matmul(weights, ops.swapaxes(features, 2, 3))
        logits = ops.reshape(logits, (images * sets * count * height, width, 2, 2, 2, 2))
        # (N P K H'', W'', Y, X, y, x) -> (N P K H'', Y, y, W'', X, x)
        logits = ops.transpose(logits, (0, 2, 4, 1, 3, 5))
        size = (MASK_UPSCALING * height, MASK_UPSCALING * width)
        return ops.reshape(logits, (images, sets, count, *size))

    def _upscaled_once(self, image: PromptedImage, shared: Any) -> Any:
        """The image after transposed convolution, norm and activation: (N P 4 L, D / 4).

        The matrices are centred, so the norm need not. It multiplies by a diagonal matrix, which
        TensorFlow computes together with bias and activation.
        """
        first, norm, activation, *_ = self.output_upscaling
        kernel, dtype = first.centred_matrix(shared.dtype), shared.dtype
        bias = ops.matmul(image.bias[None], kernel)[0]
        bias = bias + ops.tile(_centred(ops.cast(first.bias, dtype)), (4,))
        features = ops.matmul(ops.swapaxes(image.weights, 2, 3), ops.matmul(image.rows, kernel))
        features = features + ops.swapaxes(image.scale, 2, 3) * shared + bias
        features = ops.reshape(features, (-1, first.filters))
        mean = ops.full((first.filters, 1), 1.0 / first.filters)
        variance = ops.matmul(ops.square(ops.cast(features, "float32")), mean)
        features = features * ops.cast(ops.rsqrt(variance + norm.epsilon), dtype)
        gamma, beta = (ops.cast(weight, dtype) for weight in (norm.gamma, norm.beta))
        return activation(_affine(features, ops.diag(gamma), beta))


# -------------------------------------------------------------------------------------- model

_DENSE_AXES = (1, 0)
_CONVOLUTION_AXES = (2, 3, 1, 0)


def _named_weights(
    layer: Any, prefix: str = ""
) -> Iterator[tuple[str, Any, tuple[int, ...] | None]]:
    """Name, variable, and the order of PyTorch's axes in it, of every weight below a layer.

    The names are those of the attributes that lead there, as in the PyTorch class.
    """
    if isinstance(layer, (layers.Dense, layers.Conv2D, layers.Conv2DTranspose)):
        is_dense = isinstance(layer, layers.Dense)
        yield f"{prefix}weight", layer.kernel, _DENSE_AXES if is_dense else _CONVOLUTION_AXES
        if layer.use_bias:
            yield f"{prefix}bias", layer.bias, None
    elif isinstance(layer, layers.LayerNormalization):
        yield f"{prefix}weight", layer.gamma, None
        yield f"{prefix}bias", layer.beta, None
    else:
        public = {n: value for n, value in vars(layer).items() if not n.startswith("_")}
        for name, value in public.items():  # a layer's own come first, as PyTorch lists them
            if isinstance(value, keras.Variable):
                yield prefix + name, value, None
        for name, value in public.items():
            if isinstance(value, layers.Layer):
                yield from _named_weights(value, f"{prefix}{name}.")
            elif isinstance(value, list):
                steps = {i: step for i, step in enumerate(value) if isinstance(step, layers.Layer)}
                for index, step in steps.items():
                    yield from _named_weights(step, f"{prefix}{name}.{index}.")


class TFSegmentAnythingPreTrainedModel(keras.Model, PushToHubMixin):
    """What a model does with weights: reads them, writes them, names them as PyTorch does."""

    config_class = SegmentAnythingModelConfig

    def __init__(self, config: SegmentAnythingModelConfig, **kwargs: Any) -> None:
        """Keeps the configuration.

        Args:
            config: The configuration.
            kwargs: What `keras.Model` takes.
        """
        super().__init__(autocast=False, **kwargs)
        self.config = config

    def state_dict(self) -> dict[str, np.ndarray]:
        """Weights as numpy arrays, with the names and the axes of the PyTorch class."""
        state = {}
        for name, variable, axes in _named_weights(self):
            array = np.asarray(ops.convert_to_tensor(variable))
            array = array if axes is None else array.transpose(np.argsort(axes))
            state[name] = np.ascontiguousarray(array)
        return state

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Takes weights with the names and the axes of the PyTorch class.

        Raises:
            ValueError: Weights are missing, too many, or of another shape, each named.
        """
        named = {name: (variable, axes) for name, variable, axes in _named_weights(self)}
        missing, unexpected = sorted(named.keys() - state), sorted(state.keys() - named)
        wrong = []
        for name in named.keys() & state.keys():
            variable, axes = named[name]
            array = state[name] if axes is None else state[name].transpose(axes)
            if tuple(array.shape) != tuple(variable.shape):
                wrong.append(f"{name} is {state[name].shape}")
                continue
            variable.assign(array)
        if missing or unexpected or wrong:
            raise ValueError(
                f"The weights do not fit the configuration. Missing: {missing}. "
                f"Unexpected: {unexpected}. Of another shape: {wrong}."
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        config: SegmentAnythingModelConfig | str | os.PathLike[str] | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Model with the weights of a preset, a folder, a Hub repository or a Meta checkpoint.

        Reads what `SegmentAnythingModel.from_pretrained` reads; a `.pth` file needs PyTorch.

        Args:
            pretrained_model_name_or_path: The preset's name, folder, repository or file.
            config: The configuration to use instead of the checkpoint's.
            dtype: A dtype policy of Keras, such as "mixed_bfloat16"; by default the global one.
            kwargs: Fields of the configuration to replace, and options of the Hub.

        Raises:
            OSError: No such preset, file, folder or repository, or a file that cannot be read.
            TypeError: An option is unknown.
            ValueError: The weights do not fit the model, each named.
        """
        config, weights, unknown = load_checkpoint(
            pretrained_model_name_or_path, cls.config_class, config, kwargs, framework="np"
        )
        if unknown:
            raise TypeError(f"Unknown options {sorted(unknown)}.")
        policy = keras.config.dtype_policy()
        is_loading = _IS_LOADING.set(True)
        try:
            keras.config.set_dtype_policy(dtype or policy)
            model = cls(config)
        finally:
            keras.config.set_dtype_policy(policy)
            _IS_LOADING.reset(is_loading)
        model.load_state_dict(weights)
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        max_shard_size: int | str = "50GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes configuration and weights; the file is the one that the PyTorch class writes.

        Args:
            save_directory: Folder, made if needed.
            max_shard_size: Weights beyond it go to several files.
            push_to_hub: Whether to upload the folder.
            kwargs: Options of `push_to_hub`.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = ["SegmentAnythingModel"]
        self.config.save_pretrained(folder)
        state = self.state_dict()
        split = split_state_dict_into_shards_factory(
            state,
            get_storage_size=lambda array: array.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
        for name, keys in split.filename_to_tensors.items():
            unfinished = folder / f"{name}.tmp"
            save_file({key: state[key] for key in keys}, unfinished, metadata={"format": "pt"})
            unfinished.rename(folder / name)
        if split.is_sharded:
            # Of what PyTorch calls parameters: the frequencies do not learn.
            count = sum(array.size for name, array in state.items() if "pe_layer" not in name)
            metadata = {"total_parameters": count, **split.metadata}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True)
            (folder / SAFETENSORS_INDEX).write_text(f"{text}\n")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)


class TFSegmentAnythingModel(TFSegmentAnythingPreTrainedModel):
    """Segment Anything: masks for points, boxes and masks in an image.

    Attributes:
        clicks: Corrections that a step of `fit` simulates. With 0 it learns from the prompts of the
            inputs alone; otherwise from prompts that it draws itself, see `interactive_loss`.
    """

    def __init__(self, config: SegmentAnythingModelConfig, **kwargs: Any) -> None:
        """Builds the model that the configuration describes, with random weights.

        Args:
            config: The configuration.
            kwargs: What `keras.Model` takes.
        """
        super().__init__(config, **kwargs)
        self.clicks = 0
        self.iou_tracker = keras.metrics.Mean("iou")
        self._is_fitting = False
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self.build()

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for part in (self.image_encoder, self.prompt_encoder, self.mask_decoder):
            part.build()
        self.built = True

    @property
    def dummy_inputs(self) -> dict[str, Any]:
        """One black image with one foreground point, of the shapes that `call` takes."""
        height, width = self.config.input_size
        return {
            "images": ops.zeros((1, height, width, self.config.in_channels)),
            "points": ops.convert_to_tensor([[[width / 2, height / 2]]]),
            "labels": ops.ones((1, 1), "int32"),
        }

    @property
    def mask_threshold(self) -> float:
        """Logits above it belong to the mask."""
        return self.config.mask_threshold

    def grid_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Spatial size (H'', W'') of the image embeddings.

        Args:
            input_size: Size (H, W) of the model input, by default the configuration's.
        """
        return self.config.grid_size(input_size)

    def mask_size(self, input_size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Spatial size (H', W') of mask prompts and of low-resolution logits.

        Args:
            input_size: Size (H, W) of the model input, by default the configuration's.
        """
        return self.config.mask_size(input_size)

    def get_image_embeddings(self, images: Any, training: bool = False) -> Any:
        """Embeddings (N, H'', W'', D) of images, to be used again for any number of prompts.

        Args:
            images: (N, H, W, C), resized, normalised and padded.
            training: Whether the drop rates act.

        Raises:
            ValueError: The channels or the size are not the configuration's.
        """
        images = ops.convert_to_tensor(images)
        self._check_images(tuple(images.shape))
        return self.image_encoder(ops.cast(images, self.compute_dtype), training=training)

    def get_prompt_embeddings(
        self, inputs: dict[str, Any], input_size: tuple[int, int] | None = None
    ) -> tuple[Any, Any]:
        """Embeddings of prompts: tokens (N, P, M, D) and a grid (N, P, H'', W'', D).

        Without a mask the grid is (1, 1, 1, 1, D), to be broadcast; without points and boxes
        there are no tokens. What a prompt set does not have but others do has a token, too.

        Args:
            inputs: The prompts, as `call` takes them.
            input_size: Size (H, W) that the coordinates refer to, by default the configuration's.
        """
        prompts, _ = _read_prompts(inputs)
        tokens, dense, exists = self.prompt_encoder(
            *prompts, input_hw=input_size or self.config.input_size
        )
        if exists is not None:
            tokens = ops.take(tokens, ops.nonzero(ops.any(exists, axis=(0, 1)))[0], axis=2)
        return tokens, dense

    def call(
        self,
        inputs: dict[str, Any],
        training: bool = False,
        multimask_output: bool = False,
        return_logits: bool = False,
    ) -> tuple[Any, ...]:
        """Masks of every image, at the size of the model input.

        Args:
            inputs: A dictionary with `images` (N, H, W, C) and, each of them optional or of
                length 0, `points` (N, M1, 2), `labels` (N, M1), `boxes` (N, M2, 4) and `masks`
                (N, M3, H', W'). Or what the processor returns: `pixel_values` (N, C, H, W),
                `input_points` (N, P, M1, 2) and so on; results have an axis P then. Instead of
                images `image_embeddings` (N, H'', W'', D).
            training: Whether the drop rates act.
            multimask_output: True for K = `nb_multimask_outputs` nested masks, False for one.
            return_logits: True for logits instead of boolean masks.

        Returns:
            Masks (N, K, H, W), bool or logits; scores (N, K); logits (N, K, H', W').

        Raises:
            ValueError: A name is unknown or a shape does not fit.
        """
        prompts, has_sets = _read_prompts(inputs)
        embeddings = self._embeddings(inputs, training)
        selection = slice(1, None) if multimask_output else slice(0, 1)
        selection = slice(None) if self._is_fitting else selection
        logits, scores = self.decode(embeddings, *prompts, selection)
        masks = self._at_input_size(logits)
        if not return_logits:
            masks = masks > self.mask_threshold
        results: tuple[Any, ...] = (masks, scores, logits)
        results = results if has_sets else tuple(result[:, 0] for result in results)
        return (*results, embeddings) if self._is_fitting else results

    def decode(
        self,
        image_embeddings: Any,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        masks: Any = None,
        selection: slice = slice(None),
    ) -> tuple[Any, Any]:
        """Logits (N, P, K, H', W') and qualities (N, P, K) of the selected masks.

        Args:
            image_embeddings: (N, H'', W'', D).
            points: (N, P, M1, 2) or None.
            labels: (N, P, M1), with points.
            boxes: (N, P, M2, 4) or None.
            masks: (N, P or 1, M3, H', W') or None.
            selection: Which masks: 0 is the single one, the others the multiple ones.
        """
        shared = self.share(image_embeddings, masks)
        return self.decode_shared(
            shared, points, labels, boxes, tuple(image_embeddings.shape[1:3]), selection
        )

    def share(self, image_embeddings: Any, masks: Any = None) -> SharedImage:
        """The part of decoding that is the same for all prompts of an image but for masks.

        Args:
            image_embeddings: (N, H'', W'', D).
            masks: (N, P or 1, M3, H', W') or None.
        """
        positions = self.prompt_encoder.pe_layer.of_grid(*image_embeddings.shape[1:3])
        return self.mask_decoder.share(
            ops.cast(image_embeddings, self.compute_dtype),
            positions,
            self.prompt_encoder.dense(masks),
        )

    def decode_shared(
        self,
        shared: SharedImage,
        points: Any,
        labels: Any,
        boxes: Any,
        grid_hw: tuple[int, int],
        selection: slice,
    ) -> tuple[Any, Any]:
        """As `decode`, for what `share` returned.

        Args:
            shared: The image, and the masks if there are any.
            points: As in `decode`, and so labels and boxes.
            labels: (N, P, M1), with points.
            boxes: (N, P, M2, 4) or None.
            grid_hw: Size (H'', W'') of the image embeddings.
            selection: As in `decode`.
        """
        tokens, exists = self.prompt_encoder.tokens(points, labels, boxes, self._input_hw(grid_hw))
        return self.mask_decoder(shared, tokens, exists, grid_hw=grid_hw, selection=selection)

    def decode_above(
        self,
        shared: SharedImage,
        points: Any,
        labels: Any,
        grid_hw: tuple[int, int],
        iou_threshold: Any,
    ) -> tuple[Any, Any, Any]:
        """The multiple masks of those prompt sets of which any mask's quality suffices.

        The quality is known before a mask is made, and the others never are.

        Args:
            shared: What `share` returned for one image.
            points: (1, P, M1, 2).
            labels: (1, P, M1).
            grid_hw: Size (H'', W'') of the image embeddings.
            iou_threshold: One quality has to be above it.

        Returns:
            Logits (1, n, K, H', W'), qualities (P, K) of all prompt sets, and which of them have
            masks (n,).
        """
        tokens, exists = self.prompt_encoder.tokens(points, labels, None, self._input_hw(grid_hw))
        decoded = self.mask_decoder.decode(shared, tokens, exists)
        scores = ops.cast(decoded.iou_scores[0, :, 1:], "float32")
        (chosen,) = ops.nonzero(ops.any(scores > iou_threshold, axis=-1))
        multiple = range(1, self.config.nb_multimask_outputs + 1)
        logits = self.mask_decoder.masks(decoded.take(chosen), shared, grid_hw, multiple)
        return logits, scores, chosen

    def _input_hw(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        patch = self.config.encoder_patch_size
        return grid_hw[0] * patch, grid_hw[1] * patch

    def _embeddings(self, inputs: dict[str, Any], training: bool) -> Any:
        given = [name for name in _IMAGE_NAMES if inputs.get(name) is not None]
        if len(given) != 1:
            raise ValueError(f"Give exactly one of {', '.join(_IMAGE_NAMES)}, got {given}.")
        values = ops.convert_to_tensor(inputs[given[0]])
        if given[0] == "image_embeddings":
            return values
        if given[0] == "pixel_values":
            values = ops.transpose(values, (0, 2, 3, 1))
        return self.get_image_embeddings(values, training)

    def _at_input_size(self, logits: Any) -> Any:
        images, sets, count = ops.shape(logits)[:3]
        height, width = logits.shape[3:]
        patch = self.config.encoder_patch_size
        size = (height * patch // MASK_UPSCALING, width * patch // MASK_UPSCALING)
        flat = ops.reshape(logits, (images * sets * count, height, width, 1))
        flat = ops.image.resize(flat, size, "bilinear", data_format="channels_last")
        return ops.reshape(flat, (images, sets, count, *size))

    def _check_images(self, shape: tuple[int | None, ...]) -> None:
        config = self.config
        if len(shape) != 4 or shape[3] != config.in_channels:
            raise ValueError(
                f"images must have the shape (N, H, W, {config.in_channels}), got {shape}."
            )
        height, width = shape[1:3]
        if config.fixed_input_size and (height, width) != config.input_size:
            raise ValueError(
                f"This model takes images of {config.input_size} pixels, got {(height, width)}. "
                "Use the image processor, or load the model with fixed_input_size=False."
            )
        if height is None or width is None:
            raise ValueError("The height and width of the images must be known.")
        if height % config.encoder_patch_size or width % config.encoder_patch_size:
            raise ValueError(
                f"Height and width must be multiples of the patch size "
                f"{config.encoder_patch_size}, got {(height, width)}."
            )

    # ------------------------------------------------------------------------------- training

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """The paper's loss, unless `compile` was given another one.

        `fit` and `evaluate` decode all masks: the single one learns, and the best of the multiple
        ones. They report the mean IoU of the one that the model rates highest as `iou`. With
        `clicks`, `fit` learns from a simulated interaction instead.

        Args:
            x: The inputs, as `call` takes them.
            y: True masks (N, h, w), or for inputs with an axis P (N, P, h, w), of any resolution:
                boolean, from 0 to 1, or 0 and 255. With that axis also (N, h, w) instance ids, as
                `read_labels` takes them. Negative where the truth is not known.
            y_pred: What `call` returned.
            sample_weight: Only with a loss of `compile`.
            training: Whether it is a step of training.

        Raises:
            ValueError: There is no truth, its values make no sense, or there are sample weights
                for a loss that takes none. Compiled, values are checked where `fit` and its kin
                get an array `y`, not in a data set.
        """
        if self._compile_loss is not None:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        if y is None or sample_weight is not None:
            raise ValueError(
                "Training takes pairs (inputs, true masks), without sample weights; mark what "
                "should not count with negative values in the masks."
            )
        _, scores, logits, embeddings = y_pred
        labels = ops.convert_to_tensor(y)
        if len(logits.shape) == 4:
            labels, scores, logits = labels[:, None], scores[:, None], logits[:, None]
        masks, is_known = read_labels(labels, logits.shape[1])
        labels = ops.where(is_known, masks, -1.0)
        truth, known = resize_labels(labels, logits)
        iou = mask_iou(logits > self.mask_threshold, truth > 0.5, known)
        rated_best = ops.argmax(scores, axis=-1)[..., None]
        self.iou_tracker.update_state(ops.take_along_axis(iou, rated_best, axis=-1))
        if training and self.clicks:
            decode = partial(self.decode, embeddings)
            input_hw = self._input_hw(tuple(embeddings.shape[1:3]))
            loss = interactive_loss(decode, labels, input_hw, self.mask_threshold, self.clicks)
        else:
            loss = loss_of_all_masks(logits, scores, labels, self.mask_threshold)
        return loss + sum(self.losses)

    def train_step(self, *args: Any) -> Any:
        """One step of `fit`, on all masks."""
        with self._fitting(), warnings.catch_warnings():
            # The weights for kinds of prompts that the batch lacks.
            warnings.filterwarnings("ignore", "Gradients do not exist for variables")
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        """One step of `evaluate`, on all masks."""
        with self._fitting():
            return super().test_step(*args)

    def fit(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def train_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(self, x: Any, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in Keras, once the true masks have been checked as `compute_loss` says."""
        self._check_values(x, y)
        return super().test_on_batch(x, y, *args, **kwargs)

    def _check_values(self, x: Any, y: Any) -> None:
        """Refuses true masks in an array that a compiled step would take: it sees no values."""
        if y is None or self._compile_loss is not None:
            return
        first = {name: values[:1] for name, values in x.items() if values is not None}
        prompts, has_sets = _read_prompts(first)
        prompt_sets = next((prompt.shape[1] for prompt in prompts if prompt is not None), 1)
        for labels in y:  # one by one, which takes little memory
            labels = ops.convert_to_numpy(labels)[None]
            check_values(labels if has_sets else labels[:, None], prompt_sets)

    @contextmanager
    def _fitting(self) -> Iterator[None]:
        """Makes `call` return all masks, the single one first, where no caller can ask for it."""
        self._is_fitting = self._compile_loss is None
        try:
            yield
        finally:
            self._is_fitting = False

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_size: tuple[int, int] | None = None,
        **converter_options: Any,
    ) -> None:
        """Writes what runs without this package: a SavedModel, or two TFLite files.

        The part `encode_images` takes `images` (N, H, W, C), resized, normalised and padded, and
        returns `image_embeddings` (N, H'', W'', D). `decode_masks` takes these and `points`
        (N, P, M1, 2), `labels` (N, P, M1), `boxes` (N, P, M2, 4) and `masks` (N, P, M3, H', W'),
        and returns `mask_logits` (N, P, 1 + K, H', W') and `iou_scores` (N, P, 1 + K), the single
        mask first. All numbers but the sizes may differ from call to call. A prompt that is not
        given is padding: points with the label -10, boxes of four times -10, masks of NaN.

        Args:
            filepath: The folder, which must not exist yet. For TFLite it will hold
                `image_encoder.tflite` and `mask_decoder.tflite`.
            format: "tf_saved_model", or "litert" for TFLite.
            verbose: Whether to print what the SavedModel takes and returns.
            input_size: Size (H, W) of the images, by default the configuration's.
            converter_options: Attributes of TensorFlow's TFLiteConverter, such as `optimizations`.

        Raises:
            FileExistsError: The folder exists.
            TypeError: Options of the converter, but no TFLite is asked for.
            ValueError: The format is unknown, or Keras does not run on TensorFlow.
        """
        export_model(self, Path(filepath), format, input_size, bool(verbose), **converter_options)


_IMAGE_NAMES = ("images", "pixel_values", "image_embeddings")
_PROMPT_NAMES = ("points", "labels", "boxes", "masks")
_OTHER_NAMES = ("original_sizes", "reshaped_input_sizes")


def _read_prompts(inputs: dict[str, Any]) -> tuple[tuple[Any, Any, Any, Any], bool]:
    """Points, labels, boxes and masks with an axis P, and whether they came with one.

    Raises:
        ValueError: A name is unknown, or names of both kinds are mixed.
    """
    with_sets = [f"input_{name}" for name in _PROMPT_NAMES]
    unknown = sorted(set(inputs) - {*_IMAGE_NAMES, *_PROMPT_NAMES, *with_sets, *_OTHER_NAMES})
    if unknown:
        raise ValueError(
            f"Unknown inputs {unknown}. Expected {', '.join(_IMAGE_NAMES)}, and "
            f"{', '.join(_PROMPT_NAMES)} or {', '.join(with_sets)}."
        )
    has_sets = "pixel_values" in inputs or any(name in inputs for name in with_sets)
    if has_sets and any(name in inputs for name in _PROMPT_NAMES):
        raise ValueError(f"Give prompts either as {_PROMPT_NAMES} or as {with_sets}, not both.")
    prompts = []
    for plain, name in zip(_PROMPT_NAMES, with_sets, strict=True):
        values = inputs.get(name if has_sets else plain)
        values = None if values is None else ops.convert_to_tensor(values)
        prompts.append(values if values is None or has_sets else values[:, None])
    return _arrange_prompts(*prompts), has_sets


def _arrange_prompts(points: Any, labels: Any, boxes: Any, masks: Any) -> tuple[Any, Any, Any, Any]:
    """Prompts with every axis of the contract; one that is known to be empty becomes None."""
    if points is None and labels is not None:
        raise ValueError("labels need points: each label belongs to a point.")
    if points is not None and labels is None:
        labels = ops.ones(ops.shape(points)[:-1], "int32")
    if boxes is not None and len(boxes.shape) == 3:
        boxes = boxes[:, :, None]
    if masks is not None and len(masks.shape) == 4:
        masks = masks[:, :, None]
    points, boxes, masks = (
        None if prompt is None or 0 in prompt.shape[1:3] else prompt
        for prompt in (points, boxes, masks)
    )
    return points, None if points is None else labels, boxes, masks
