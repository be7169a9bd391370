"""The image encoder in Keras, laid out as in `image_encoder.py`.

Everything is channels last: images (N, H, W, C), a grid of tokens (N, H'', W'', C), image
embeddings (N, H'', W'', D).

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A; Li et al., "Exploring
Plain Vision Transformer Backbones for Object Detection", arXiv:2203.16527.
"""

from typing import Any

import numpy as np
from keras import layers, ops

from .configuration_segment_anything import ENCODER_NORM_EPS, SegmentAnythingModelConfig
from .layers_tf import (
    ACTIVATIONS,
    Downscaling,
    Norm,
    Perceptron,
    attend,
    build_chain,
    chain,
    dense,
    embedding_neck,
)
from .mask_ops import bilinear_matrix

_BIAS_ELEMENTS = 1 << 24
"""Largest relative-position bias that is built at once, in elements an image (64 MiB in fp32)."""


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
        self.qkv = dense(3 * self.width, config.encoder_qkv_bias)
        self.proj = dense(self.width)
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
            mixed.append(attend(queries, key, value, bias, self.drop_attention, training))
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
            config.encoder_hidden(self.width),
            ACTIVATIONS[config.encoder_act_layer],
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
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.drop = layers.Dropout(config.encoder_drop_rate)
        self.blocks = [EncoderBlock(config, i) for i in range(config.encoder_nb_blocks)]
        self.neck = embedding_neck(config.embed_dim)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        width = self.config.encoder_embed_dim
        self.patch_embed.build()
        self.pos_embed = self.add_weight(
            shape=(1, *self.config.grid_size(), width), initializer="zeros", name="pos_embed"
        )
        for block in self.blocks:
            block.build()
        build_chain(self.neck, (None, None, None, width))
        self.built = True

    def call(self, images: Any, training: bool = False) -> Any:
        """Image embeddings (N, H'', W'', D) of normalised, padded images (N, H, W, C)."""
        tokens = self.patch_embed(images)
        positions = ops.cast(self._positions(*tokens.shape[1:3]), tokens.dtype)
        tokens = self.drop(tokens + positions, training=training)
        for block in self.blocks:
            tokens = block(tokens, training=training)
        return chain(self.neck, tokens)

    def _positions(self, grid_h: int, grid_w: int) -> Any:
        """Absolute positions, resampled bilinearly for a grid of another size."""
        positions = ops.convert_to_tensor(self.pos_embed)
        _, given_h, given_w, _ = positions.shape
        if (given_h, given_w) == (grid_h, grid_w):
            return positions
        by_row = ops.einsum("yh,nhwc->nywc", bilinear_matrix(given_h, grid_h), positions)
        return ops.einsum("xw,nywc->nyxc", bilinear_matrix(given_w, grid_w), by_row)
