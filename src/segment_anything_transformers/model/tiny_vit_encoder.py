"""TinyViT, an image encoder of convolutions and windowed attention: MobileSAM's.

Its batch norms are not here: they are part of the convolutions before them, see
`batch_norms.py`. On a processor strips of the image go through a layer one after another, so that
what is made of a strip stays in the cache.

Shapes: N images, (H, W) the grid of a stage, C its width; (H'', W'') the grid of image embeddings,
D their width.

Source: Wu et al., "TinyViT: Fast Pretraining Distillation for Small Vision Transformers",
arXiv:2207.10666; Zhang et al., "Faster Segment Anything", arXiv:2306.14289.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_segment_anything import (
    ENCODER_NORM_EPS,
    TINY_VIT_STRIDES,
    SegmentAnythingModelConfig,
)
from .layers import ACTIVATIONS, convolve, drop_path, embedding_neck, is_in_pieces, linear

_VALUES_AT_ONCE = 1 << 21
"""Values that the widest layer makes of a strip, on a processor: 8 MiB in fp32."""


def _convolution(
    channels: int, out: int, side: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution with zeros around the image, and the bias that batch norm leaves."""
    return nn.Conv2d(channels, out, side, stride, side // 2, groups=groups)


def _rows_at_once(image: Tensor, channels: int) -> int:
    """Rows of (N, C, H, W) features that make one strip where a layer has so many channels."""
    return max(1, _VALUES_AT_ONCE // (image.shape[-1] * channels))


def _in_strips(
    layer: Callable[[Tensor, int, int], Tensor], features: Tensor, channels: int, stride: int = 1
) -> Tensor:
    """A layer that sees one row around each of its own, one strip of rows after another.

    Args:
        layer: Takes a strip (N, C, h, W), and how many rows of its result at the top and at the
            bottom belong to the next strips, and leaves these out.
        features: (N, C, H, W).
        channels: Channels inside the layer.
        stride: Rows of the features for one of the result.
    """
    height, step = features.shape[2] // stride, _rows_at_once(features, channels)
    strips = []
    for start in range(0, height, step):
        end = min(start + step, height)
        above, below = int(start > 0), int(end < height)
        strip = features[:, :, (start - above) * stride : (end + below) * stride]
        strips.append(layer(strip, above, below))
    return torch.cat(strips, dim=2)


class ConvolutionalEmbedding(nn.Module):
    """Two convolutions that halve the image each."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes features of the first stage's width."""
        super().__init__()
        self.width = config.encoder_stage_widths[0]
        self.seq = nn.Sequential(
            _convolution(config.in_channels, self.width // 2, 3, 2),
            Activation(config.encoder_act_layer),
            _convolution(self.width // 2, self.width, 3, 2),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Features (N, C, H / 4, W / 4) of images (N, C, H, W)."""
        if not is_in_pieces(self, pixel_values):
            return self.seq(pixel_values)
        return _in_strips(self._strip, pixel_values, self.width // 2, stride=4)

    def _strip(self, strip: Tensor, above: int, below: int) -> Tensor:
        features = self.seq(strip.contiguous(memory_format=torch.channels_last))
        return features[:, :, above : features.shape[2] - below]


class Activation(nn.Module):
    """An activation as a layer, by its name in the configuration."""

    def __init__(self, name: str) -> None:
        """Has no weights."""
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, features: Tensor) -> Tensor:
        """Acts on each value."""
        return self.function(features)


class InvertedBottleneck(GradientCheckpointingLayer):
    """A depthwise convolution in a wider space, added to its input (arXiv:1801.04381)."""

    def __init__(
        self, config: SegmentAnythingModelConfig, width: int, drop_path_rate: float
    ) -> None:
        """Widens `width` as the perceptrons of the other stages do."""
        super().__init__()
        self.hidden = config.encoder_hidden(width)
        self.conv1 = _convolution(width, self.hidden)
        self.conv2 = _convolution(self.hidden, self.hidden, 3, groups=self.hidden)
        self.conv3 = _convolution(self.hidden, width)
        self.activation = ACTIVATIONS[config.encoder_act_layer]
        self.drop_path_rate = drop_path_rate

    def forward(self, features: Tensor) -> Tensor:
        """Refines features: (N, C, H, W) to the same shape."""
        if not is_in_pieces(self, features):
            return self._strip(features, 0, 0)
        return _in_strips(self._strip, features, self.hidden)

    def _strip(self, strip: Tensor, above: int, below: int) -> Tensor:
        inner = slice(above, strip.shape[2] - below)
        wide = self.activation(convolve(self.conv1, strip))
        wide = self.activation(self.conv2(wide)[:, :, inner])
        branch = drop_path(convolve(self.conv3, wide), self.drop_path_rate, self.training)
        return self.activation(strip[:, :, inner] + branch)


class PatchMerging(nn.Module):
    """What leads from one stage to the next: another width, and maybe half the grid."""

    def __init__(self, config: SegmentAnythingModelConfig, stage: int) -> None:
        """Follows the stage, counted from 0."""
        super().__init__()
        self.width = width = config.encoder_stage_widths[stage + 1]
        self.stride = TINY_VIT_STRIDES[stage]
        self.conv1 = _convolution(config.encoder_stage_widths[stage], width)
        self.conv2 = _convolution(width, width, 3, self.stride, groups=width)
        self.conv3 = _convolution(width, width)
        self.activation = ACTIVATIONS[config.encoder_act_layer]

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C of the next stage, H / stride, W / stride)."""
        if not is_in_pieces(self, features):
            return self._strip(features, 0, 0)
        return _in_strips(self._strip, features, self.width, self.stride)

    def _strip(self, strip: Tensor, above: int, below: int) -> Tensor:
        merged = self.conv2(self.activation(convolve(self.conv1, strip)))
        merged = merged[:, :, above : merged.shape[2] - below]
        return convolve(self.conv3, self.activation(merged))


class WindowAttention(nn.Module):
    """Multi-head attention inside windows, with a learnt bias for each distance and head.

    The last windows are completed with tokens of zeros, before the norm. They are attended to.
    """

    def __init__(self, config: SegmentAnythingModelConfig, stage: int) -> None:
        """Has the width, the heads and the windows of a stage, which is not the first."""
        super().__init__()
        width = config.encoder_stage_widths[stage]
        self.config = config
        self.heads = config.encoder_stage_heads[stage - 1]
        self.window_size = config.encoder_stage_windows[stage - 1]
        self.drop_attention = config.encoder_attn_drop_rate
        self.norm = nn.LayerNorm(width, eps=ENCODER_NORM_EPS[config.encoder_norm_layer])
        self.qkv = nn.Linear(width, 3 * width, bias=config.encoder_qkv_bias)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(config.encoder_drop_rate)
        self.attention_biases = nn.Parameter(torch.zeros(self.heads, self.window_size**2))

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixes the tokens of each window: (N, H, W, C) to the same shape."""
        bias, padding = self._bias().to(tokens.dtype), self._padding(tokens)
        if not is_in_pieces(self, tokens):
            return self._attend(tokens, bias, padding)
        strips = tokens.split(self.window_size, dim=1)
        return torch.cat([self._attend(strip, bias, padding) for strip in strips], dim=1)

    def _bias(self) -> Tensor:
        """Of each pair of tokens of a window: (1, heads, h * w, h * w)."""
        places = torch.arange(self.window_size, device=self.attention_biases.device)
        distances = (places[:, None] - places).abs()
        pairs = self.window_size * distances[:, None, :, None] + distances[:, None]  # (h, w, h, w)
        return self.attention_biases[:, pairs.flatten(2).flatten(0, 1)][None]

    def _padding(self, tokens: Tensor) -> Tensor | None:
        """Queries, keys and values (1, 1, 1, 3 C) of a token of zeros; None if none is needed."""
        if not any(side % self.window_size for side in tokens.shape[1:3]):
            return None
        return linear(self.qkv, self.norm(tokens.new_zeros(1, 1, 1, tokens.shape[-1])))

    def _attend(self, tokens: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """As `forward`, for a whole number of rows of windows, or the last rows."""
        count, height, width, _ = tokens.shape
        qkv = self._completed(linear(self.qkv, self.norm(tokens)), padding)
        size = self.window_size
        windows = qkv.unflatten(1, (-1, size)).unflatten(3, (-1, size)).transpose(2, 3)
        rows, columns = windows.shape[1:3]  # (N, rows, columns, h, w, 3 C)
        windows = windows.flatten(3, 4).flatten(0, 2).unflatten(2, (self.heads, 3, -1))
        query, key, value = windows.permute(3, 0, 2, 1, 4)  # (N * windows, heads, h * w, c)
        mixed = self._mix(query, key, value, bias).transpose(1, 2).flatten(2)
        grid = mixed.unflatten(1, (size, size)).unflatten(0, (count, rows, columns))
        grid = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, :height, :width]
        return self.drop(linear(self.proj, grid))

    def _completed(self, qkv: Tensor, padding: Tensor | None) -> Tensor:
        """Whole windows: (N, H, W, 3 C) with the padding to the right and below."""
        if padding is None:
            return qkv
        count, height, width, channels = qkv.shape
        right, below = -width % self.window_size, -height % self.window_size
        if right:
            qkv = torch.cat([qkv, padding.expand(count, height, right, channels)], dim=2)
        if below:
            qkv = torch.cat([qkv, padding.expand(count, below, width + right, channels)], dim=1)
        return qkv

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        dropout = self.drop_attention if self.training else 0.0
        bias = bias.to(query.dtype)
        if self.config._attn_implementation != "eager":
            return F.scaled_dot_product_attention(query, key, value, bias, dropout)
        scores = (query * query.shape[-1] ** -0.5) @ key.mT + bias
        return F.dropout(scores.softmax(-1), dropout) @ value


class NormedPerceptron(nn.Module):
    """Layer norm and two linear layers with an activation between them."""

    def __init__(self, config: SegmentAnythingModelConfig, width: int) -> None:
        """Maps `width` to `encoder_mlp_ratio` times as much and back."""
        super().__init__()
        self.hidden = config.encoder_hidden(width)
        self.norm = nn.LayerNorm(width, eps=ENCODER_NORM_EPS[config.encoder_norm_layer])
        self.fc1 = nn.Linear(width, self.hidden)
        self.fc2 = nn.Linear(self.hidden, width)
        self.activation = ACTIVATIONS[config.encoder_act_layer]
        self.drop = nn.Dropout(config.encoder_drop_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transforms each token on its own."""
        hidden = self.drop(self.activation(linear(self.fc1, self.norm(tokens))))
        return self.drop(linear(self.fc2, hidden))


class WindowBlock(GradientCheckpointingLayer):
    """Attention in windows, a depthwise convolution across their borders, and a perceptron."""

    def __init__(
        self, config: SegmentAnythingModelConfig, stage: int, drop_path_rate: float
    ) -> None:
        """Belongs to a stage, counted from 0."""
        super().__init__()
        width = config.encoder_stage_widths[stage]
        self.attn = WindowAttention(config, stage)
        self.local_conv = _convolution(width, width, 3, groups=width)
        self.mlp = NormedPerceptron(config, width)
        self.drop_path_rate = drop_path_rate

    def forward(self, features: Tensor) -> Tensor:
        """Refines features: (N, C, H, W) to the same shape."""
        tokens = features.permute(0, 2, 3, 1)
        tokens = tokens + drop_path(self.attn(tokens), self.drop_path_rate, self.training)
        tokens = self.local_conv(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        if not is_in_pieces(self, tokens):
            return self._perceive(tokens).permute(0, 3, 1, 2)
        strips = tokens.split(_rows_at_once(features, self.mlp.hidden), dim=1)
        return torch.cat([self._perceive(strip) for strip in strips], dim=1).permute(0, 3, 1, 2)

    def _perceive(self, tokens: Tensor) -> Tensor:
        return tokens + drop_path(self.mlp(tokens), self.drop_path_rate, self.training)


class Stage(nn.Module):
    """Blocks of one width, and what leads to the next stage."""

    def __init__(self, config: SegmentAnythingModelConfig, stage: int) -> None:
        """The first stage, 0, has convolutions; the others have attention."""
        super().__init__()
        depths, width = config.encoder_stage_depths, config.encoder_stage_widths[stage]
        before, last = sum(depths[:stage]), max(1, sum(depths) - 1)
        rates = [config.encoder_drop_path_rate * (before + i) / last for i in range(depths[stage])]
        self.blocks = nn.ModuleList(
            WindowBlock(config, stage, rate) if stage else InvertedBottleneck(config, width, rate)
            for rate in rates
        )
        has_next = stage + 1 < len(depths)
        self.downsample = PatchMerging(config, stage) if has_next else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Features of the next stage, or of this one if it is the last: (N, C, H, W)."""
        for block in self.blocks:
            features = block(features)
        return self.downsample(features)


class TinyViTEncoder(nn.Module):
    """TinyViT without its classifier, and the convolutional neck of Segment Anything."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the stages that the configuration describes."""
        super().__init__()
        self.patch_embed = ConvolutionalEmbedding(config)
        self.layers = nn.ModuleList(
            Stage(config, stage) for stage in range(len(config.encoder_stage_widths))
        )
        self.neck = embedding_neck(config.encoder_stage_widths[-1], config.embed_dim)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings (N, D, H'', W'') of normalised, padded images (N, C, H, W)."""
        if is_in_pieces(self, pixel_values):  # a batch would win nothing there
            return torch.cat([self._encode(image) for image in pixel_values.split(1)])
        return self._encode(pixel_values)

    def _encode(self, pixel_values: Tensor) -> Tensor:
        features = self.patch_embed(pixel_values)
        for stage in self.layers:
            features = stage(features)
        return self.neck(features)
