"""TinyViT in Keras, laid out as in `tiny_vit_encoder.py`.

Everything is channels last: images (N, H, W, C), the grid of a stage (N, H, W, C), image
embeddings (N, H'', W'', D).

Source: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
arXiv:2207.10666; Zhang et al., "Faster Segment Anything", arXiv:2306.14289.
"""

from typing import Any

import numpy as np
from keras import layers, ops

from .configuration_segment_anything import (
    ENCODER_NORM_EPS,
    TINY_VIT_STRIDES,
    SegmentAnythingModelConfig,
)
from .layers_tf import (
    ACTIVATIONS,
    Norm,
    attend,
    build_chain,
    chain,
    convolution,
    dense,
    embedding_neck,
    uniform,
)


def _drop_path(rate: float) -> layers.Dropout:
    """One random number an image: its whole branch stays or goes (arXiv:1603.09382)."""
    return layers.Dropout(rate, noise_shape=(None, 1, 1, 1))


def _with_border(images: Any) -> Any:
    """Images with a row or column of zeros at each side.

    What Keras calls "same" has them below and to the right alone where the stride is 2.
    """
    return ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))


class Halving(layers.Conv2D):
    """A convolution of 3 x 3 pixels that halves the image."""

    def __init__(self, width: int) -> None:
        """Has `width` outputs."""
        super().__init__(width, 3, 2, data_format="channels_last", kernel_initializer=uniform())

    def call(self, inputs: Any) -> Any:
        """Maps (N, H, W, C) to (N, H / 2, W / 2, width)."""
        return super().call(_with_border(inputs))


class Depthwise(layers.DepthwiseConv2D):
    """A convolution of 3 x 3 pixels of each channel on its own."""

    def __init__(self, stride: int = 1) -> None:
        """Keeps the size of the image, or halves it."""
        super().__init__(3, stride, data_format="channels_last", depthwise_initializer=uniform())

    def call(self, inputs: Any) -> Any:
        """Maps (N, H, W, C) to (N, H / stride, W / stride, C)."""
        return super().call(_with_border(inputs))


class ConvolutionalEmbedding(layers.Layer):
    """Two convolutions that halve the image each."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes features of the first stage's width."""
        super().__init__()
        width = config.encoder_stage_widths[0]
        self.channels = config.in_channels
        activation = layers.Activation(ACTIVATIONS[config.encoder_act_layer])
        self.seq = [Halving(width // 2), activation, Halving(width)]

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        build_chain(self.seq, (None, None, None, self.channels))
        self.built = True

    def call(self, images: Any) -> Any:
        """Features (N, H / 4, W / 4, C) of images (N, H, W, C)."""
        return chain(self.seq, images)


class InvertedBottleneck(layers.Layer):
    """A depthwise convolution in a wider space, added to its input (arXiv:1801.04381)."""

    def __init__(
        self, config: SegmentAnythingModelConfig, width: int, drop_path_rate: float
    ) -> None:
        """Widens `width` as the perceptrons of the other stages do."""
        super().__init__()
        self.width, self.hidden = width, config.encoder_hidden(width)
        self.conv1 = convolution(self.hidden, 1)
        self.conv2 = Depthwise()
        self.conv3 = convolution(width, 1)
        self.activation = ACTIVATIONS[config.encoder_act_layer]
        self.drop_path = _drop_path(drop_path_rate)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.conv1.build((None, None, None, self.width))
        self.conv2.build((None, None, None, self.hidden))
        self.conv3.build((None, None, None, self.hidden))
        self.built = True

    def call(self, features: Any, training: bool = False) -> Any:
        """Refines features: (N, H, W, C) to the same shape."""
        wide = self.activation(self.conv2(self.activation(self.conv1(features))))
        branch = self.drop_path(self.conv3(wide), training=training)
        return self.activation(features + branch)


class PatchMerging(layers.Layer):
    """What leads from one stage to the next: another width, and maybe half the grid."""

    def __init__(self, config: SegmentAnythingModelConfig, stage: int) -> None:
        """Follows the stage, counted from 0."""
        super().__init__()
        self.before, self.width = config.encoder_stage_widths[stage : stage + 2]
        self.conv1 = convolution(self.width, 1)
        self.conv2 = Depthwise(TINY_VIT_STRIDES[stage])
        self.conv3 = convolution(self.width, 1)
        self.activation = ACTIVATIONS[config.encoder_act_layer]

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.conv1.build((None, None, None, self.before))
        for layer in (self.conv2, self.conv3):
            layer.build((None, None, None, self.width))
        self.built = True

    def call(self, features: Any) -> Any:
        """Features (N, H / stride, W / stride, C of the next stage)."""
        merged = self.conv2(self.activation(self.conv1(features)))
        return self.conv3(self.activation(merged))


class WindowAttention(layers.Layer):
    """Multi-head attention inside windows, with a learnt bias for each distance and head.

    The last windows are completed with tokens of zeros, before the norm. They are attended to.
    """

    def __init__(self, config: SegmentAnythingModelConfig, stage: int) -> None:
        """Has the width, the heads and the windows of a stage, which is not the first."""
        super().__init__()
        self.width = config.encoder_stage_widths[stage]
        self.heads = config.encoder_stage_heads[stage - 1]
        self.window_size = config.encoder_stage_windows[stage - 1]
        self.norm = Norm(ENCODER_NORM_EPS[config.encoder_norm_layer])
        self.qkv = dense(3 * self.width, config.encoder_qkv_bias)
        self.proj = dense(self.width)
        self.drop = layers.Dropout(config.encoder_drop_rate)
        self.drop_attention = layers.Dropout(config.encoder_attn_drop_rate)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in (self.norm, self.qkv, self.proj):
            layer.build((None, self.width))
        self.attention_biases = self.add_weight(
            shape=(self.heads, self.window_size**2), initializer="zeros", name="attention_biases"
        )
        self.built = True

    def call(self, tokens: Any, training: bool = False) -> Any:
        """Mixes the tokens of each window: (N, H, W, C) to the same shape."""
        height, width = tokens.shape[1:3]
        qkv = self._completed(tokens)
        rows, columns = (side // self.window_size for side in qkv.shape[1:3])
        query, key, value = self._windows(qkv, rows, columns)
        bias = ops.cast(self._bias(), query.dtype)
        mixed = attend(query, key, value, bias, self.drop_attention, training)
        grid = self._grid(mixed, rows, columns)[:, :height, :width]
        return self.drop(self.proj(grid), training=training)

    def _completed(self, tokens: Any) -> Any:
        """Queries, keys and values of whole windows: (N, H, W, 3 C), padded right and below."""
        height, width = tokens.shape[1:3]
        below, right = -height % self.window_size, -width % self.window_size
        qkv = self.qkv(self.norm(tokens))
        if not (below or right):
            return qkv
        padding = self.qkv(self.norm(ops.zeros((1, 1, 1, self.width), tokens.dtype)))
        padded = ops.pad(qkv, ((0, 0), (0, below), (0, right), (0, 0)))
        is_padding = np.ones((height + below, width + right, 1), bool)
        is_padding[:height, :width] = False
        return ops.where(is_padding, padding, padded)

    def _windows(self, qkv: Any, rows: int, columns: int) -> list[Any]:
        """Queries, keys and values by window: three (N * windows, heads, h * w, c)."""
        side, depth = self.window_size, self.width // self.heads
        windows = ops.reshape(qkv, (-1, rows, side, columns, side, 3 * self.width))
        windows = ops.transpose(windows, (0, 1, 3, 2, 4, 5))
        windows = ops.reshape(windows, (-1, side**2, self.heads, 3 * depth))
        parts = ops.split(ops.transpose(windows, (0, 2, 1, 3)), 3, axis=-1)
        return list(parts)

    def _bias(self) -> Any:
        """Of each pair of tokens of a window: (1, heads, h * w, h * w)."""
        places = np.arange(self.window_size)
        distances = np.abs(places[:, None] - places)
        pairs = self.window_size * distances[:, None, :, None] + distances[:, None]
        bias = ops.take(self.attention_biases, pairs.ravel(), axis=1)
        return ops.reshape(bias, (1, self.heads, self.window_size**2, self.window_size**2))

    def _grid(self, mixed: Any, rows: int, columns: int) -> Any:
        """Puts windows back side by side: (N, padded H, padded W, C)."""
        side = self.window_size
        grid = ops.transpose(mixed, (0, 2, 1, 3))
        grid = ops.reshape(grid, (-1, rows, columns, side, side, self.width))
        grid = ops.transpose(grid, (0, 1, 3, 2, 4, 5))
        return ops.reshape(grid, (-1, rows * side, columns * side, self.width))


class NormedPerceptron(layers.Layer):
    """Layer norm and two linear layers with an activation between them."""

    def __init__(self, config: SegmentAnythingModelConfig, width: int) -> None:
        """Maps `width` to `encoder_mlp_ratio` times as much and back."""
        super().__init__()
        self.width, self.hidden = width, config.encoder_hidden(width)
        self.norm = Norm(ENCODER_NORM_EPS[config.encoder_norm_layer])
        self.fc1, self.fc2 = dense(self.hidden), dense(width)
        self.activation = ACTIVATIONS[config.encoder_act_layer]
        self.drop = layers.Dropout(config.encoder_drop_rate)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.norm.build((None, self.width))
        self.fc1.build((None, self.width))
        self.fc2.build((None, self.hidden))
        self.built = True

    def call(self, tokens: Any, training: bool = False) -> Any:
        """Transforms each token on its own, as the rows of a matrix (see `affine`)."""
        shape = ops.shape(tokens)
        rows = self.fc1(ops.reshape(self.norm(tokens), (-1, self.width)))
        hidden = self.drop(self.activation(rows), training=training)
        return self.drop(ops.reshape(self.fc2(hidden), shape), training=training)


class WindowBlock(layers.Layer):
    """Attention in windows, a depthwise convolution across their borders, and a perceptron."""

    def __init__(
        self, config: SegmentAnythingModelConfig, stage: int, drop_path_rate: float
    ) -> None:
        """Belongs to a stage, counted from 0."""
        super().__init__()
        self.width = config.encoder_stage_widths[stage]
        self.attn = WindowAttention(config, stage)
        self.local_conv = Depthwise()
        self.mlp = NormedPerceptron(config, self.width)
        self.drop_path = _drop_path(drop_path_rate)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in (self.attn, self.local_conv, self.mlp):
            layer.build((None, None, None, self.width))
        self.built = True

    def call(self, tokens: Any, training: bool = False) -> Any:
        """Refines the tokens: (N, H, W, C) to the same shape."""
        branch = self.attn(tokens, training=training)
        tokens = self.local_conv(tokens + self.drop_path(branch, training=training))
        return tokens + self.drop_path(self.mlp(tokens, training=training), training=training)


class Stage(layers.Layer):
    """Blocks of one width, and what leads to the next stage."""

    def __init__(self, config: SegmentAnythingModelConfig, stage: int) -> None:
        """The first stage, 0, has convolutions; the others have attention."""
        super().__init__()
        depths, width = config.encoder_stage_depths, config.encoder_stage_widths[stage]
        before, last = sum(depths[:stage]), max(1, sum(depths) - 1)
        rates = [config.encoder_drop_path_rate * (before + i) / last for i in range(depths[stage])]
        self.blocks: list[layers.Layer] = [
            WindowBlock(config, stage, rate) if stage else InvertedBottleneck(config, width, rate)
            for rate in rates
        ]
        has_next = stage + 1 < len(depths)
        self.downsample = PatchMerging(config, stage) if has_next else layers.Identity()

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        for layer in (*self.blocks, self.downsample):
            layer.build(None)
        self.built = True

    def call(self, features: Any, training: bool = False) -> Any:
        """Features of the next stage, or of this one if it is the last: (N, H, W, C)."""
        for block in self.blocks:
            features = block(features, training=training)
        return self.downsample(features)


class TinyViTEncoder(layers.Layer):
    """TinyViT without its classifier, and the convolutional neck of Segment Anything."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the stages that the configuration describes."""
        super().__init__()
        self.width = config.encoder_stage_widths[-1]
        self.patch_embed = ConvolutionalEmbedding(config)
        self.layers = [Stage(config, i) for i in range(len(config.encoder_stage_widths))]
        self.neck = embedding_neck(config.embed_dim)

    def build(self, input_shape: Any = None) -> None:
        """Makes the weights."""
        self.patch_embed.build(None)
        for stage in self.layers:
            stage.build(None)
        build_chain(self.neck, (None, None, None, self.width))
        self.built = True

    def call(self, images: Any, training: bool = False) -> Any:
        """Image embeddings (N, H'', W'', D) of normalised, padded images (N, H, W, C)."""
        features = self.patch_embed(images)
        for stage in self.layers:
            features = stage(features, training=training)
        return chain(self.neck, features)
