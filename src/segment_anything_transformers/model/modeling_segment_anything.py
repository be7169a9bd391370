"""Segment Anything in PyTorch, in the order in which data flows.

Image encoder, prompt encoder, mask decoder, model. Parameters carry the names of the original
checkpoints. Comments give shapes in the specification's letters: N images, P independent prompt
sets of an image, T tokens of a prompt set, (H'', W'') the grid of image embeddings, L = H'' W'',
D the embedding width, K masks.

Source: Kirillov et al., "Segment Anything", arXiv:2304.02643, appendix A.
"""

import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

from .configuration_segment_anything import (
    DECODER_DOWNSAMPLING,
    ENCODER_NORM_EPS,
    MASK_UPSCALING,
    PADDING,
    SegmentAnythingModelConfig,
)
from .loss_segment_anything import segmentation_loss

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda features: F.gelu(features, approximate="tanh"),
    "hard_swish": F.hardswish,
    "mish": F.mish,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "swish": F.silu,
}

_SCORES_AT_ONCE = {True: 1 << 21, False: 1 << 26}
"""Attention scores that the encoder holds at one time, on a processor and elsewhere: 8 MiB of them
in fp32 stay in a processor's cache. All scores of a global block would be 800 MB."""

_FUSED_CHANNELS = 256
"""Channels of queries and keys up to which PyTorch has an attention that writes no scores out."""

_ROWS_AT_ONCE = 16
"""Rows of tokens that go through a global block's perceptron at a time, on a processor."""

_POSITIONS_AT_ONCE = {True: 1 << 14, False: 1 << 19}
"""Image tokens of all prompt sets that are decoded together, on a processor and elsewhere."""

_SETS_UPSCALED_AT_ONCE = {True: 1, False: 32}
"""Prompt sets whose image is upscaled at a time, on a processor and elsewhere: one fills the cache
of a processor, and the launch of its operations takes a GPU longer than their work."""


@dataclass
class SegmentAnythingOutput(ModelOutput):
    """Masks that the model predicts.

    Attributes:
        loss: Scalar, with `labels` only.
        iou_scores: (N, P, K) predicted quality of each mask, an estimate of its IoU.
        pred_masks: (N, P, K, H', W') mask logits at low resolution, in the frame of the padded
            input.
        image_embeddings: (N, D, H'', W'') the embeddings that the masks were decoded from.
    """

    loss: Tensor | None = None
    iou_scores: Tensor | None = None
    pred_masks: Tensor | None = None
    image_embeddings: Tensor | None = None


@functools.cache
def _has_fused_product() -> bool:
    """Whether this build of PyTorch has oneDNN's product with what follows it in one pass."""
    rows = torch.ones(2, 3)
    try:
        fused = torch.ops.mkldnn._linear_pointwise(rows, rows, None, "gelu", [], "none")
    except (AttributeError, RuntimeError):
        return False
    return torch.allclose(fused, F.gelu(rows @ rows.T))


def _is_for_onednn(x: Tensor) -> bool:
    """Whether oneDNN should multiply, by an operation that has no gradients and is not exported.

    For fp32 on a processor PyTorch itself takes MKL, which uses half the vector width of AMD's
    processors, and a pass over the memory for an activation. Autocast would not see the operation.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    return x.device.type == "cpu" and x.dtype == torch.float32 and _has_fused_product()


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """As `F.linear`, maybe with the exact GELU of the result."""
    if _is_for_onednn(x) and weight.dtype == x.dtype:
        activation = "gelu" if gelu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
    x = F.linear(x, weight, bias)
    return F.gelu(x) if gelu else x


def _product(left: Tensor, right: Tensor) -> Tensor:
    """As `left @ right`; where each is one matrix, faster on a processor."""
    if not _is_for_onednn(left) or (left.shape[:-2].numel(), right.shape[:-2].numel()) != (1, 1):
        return left @ right
    leading = max(left.shape[:-2], right.shape[:-2], key=len)
    # oneDNN takes other strides too, and for some of them a hundred times as long.
    matrices = left.flatten(0, -2).contiguous(), right.flatten(0, -2).mT.contiguous()
    return _affine(*matrices).view(*leading, left.shape[-2], right.shape[-1])


class Linear(nn.Linear):
    """PyTorch's linear layer, faster on a processor."""

    def forward(self, input: Tensor) -> Tensor:
        """Transforms the last axis."""
        return _affine(input, self.weight, self.bias)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of (N, C, H, W), with Meta's epsilon of 1e-6."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        """Starts as the identity after normalisation."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """Features of mean 0 and variance 1 over the channels, then scaled and shifted."""
        channels_last = features.permute(0, 2, 3, 1)
        normalised = F.layer_norm(
            channels_last, self.weight.shape, self.weight, self.bias, self.eps
        )
        return normalised.permute(0, 3, 1, 2)


class Perceptron(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(
        self, width: int, hidden: int, activation: Callable[[Tensor], Tensor], drop: float = 0.0
    ) -> None:
        """Maps `width` to `hidden` and back; `drop` acts after each layer in training."""
        super().__init__()
        self.lin1 = Linear(width, hidden)
        self.lin2 = Linear(hidden, width)
        self.activation = activation
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms each token on its own."""
        return self.drop(self.lin2(self.drop(self.activation(self.lin1(x)))))


# ------------------------------------------------------------------------------ image encoder


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    dropout: float,
    implementation: str | None,
) -> Tensor:
    """Softmax attention over the last but one axis; `bias` adds to the scaled scores."""
    if implementation != "eager" and (bias is None or _biases_are_fused(query)):
        return F.scaled_dot_product_attention(query, key, value, bias, dropout)
    scaled = query * query.shape[-1] ** -0.5
    if bias is not None and bias.ndim == 3:
        # The bias is a fresh tensor, and a large one. Autocast leaves operations in place alone.
        scores = bias.baddbmm_(scaled.to(bias.dtype), key.mT.to(bias.dtype))
    else:
        scores = scaled @ key.mT if bias is None else scaled @ key.mT + bias
    return F.dropout(scores.softmax(-1), dropout) @ value


def _biases_are_fused(query: Tensor) -> bool:
    """Whether attention with a bias is left to PyTorch: on a processor it is slower there."""
    return query.device.type != "cpu"


def _relative_positions(table: Tensor, size: int) -> Tensor:
    """Rows of a relative-position table for every query and key of an axis: (size, size, c).

    A table made for another size is resampled linearly, as Meta's code does.
    """
    distances = 2 * size - 1
    if table.shape[0] != distances:
        resampled = F.interpolate(table.T[None].float(), distances, mode="linear")
        table = resampled[0].T.to(table.dtype)
    positions = torch.arange(size, device=table.device)
    return table[positions[:, None] - positions[None, :] + (size - 1)]


class EncoderAttention(nn.Module):
    """Multi-head attention inside windows (or one window of the whole grid).

    Relative positions add to the scores, decomposed by axis (arXiv:2112.01526).
    """

    def __init__(self, config: SegmentAnythingModelConfig, is_global: bool) -> None:
        """Makes the tables of relative positions for the grid or for the window."""
        super().__init__()
        width = config.encoder_embed_dim
        self.config = config
        self.heads = config.encoder_nb_heads
        self.window_size = 0 if is_global else config.encoder_window_size
        self.drop_attention = config.encoder_attn_drop_rate
        self.qkv = Linear(width, 3 * width, bias=config.encoder_qkv_bias)
        self.proj = Linear(width, width)
        self.drop = nn.Dropout(config.encoder_drop_rate)
        window_h, window_w = self._window_hw(config.grid_size())
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * window_h - 1, width // self.heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * window_w - 1, width // self.heads))

    def _window_hw(self, grid_hw: tuple[int, int]) -> tuple[int, int]:
        return (self.window_size, self.window_size) if self.window_size else grid_hw

    def forward(self, tokens: Tensor) -> Tensor:
        """Mixes the tokens of each window: (N, H'', W'', C) to the same shape."""
        grid_h, grid_w = tokens.shape[1:3]
        window_hw = self.window_size or grid_h, self.window_size or grid_w
        query, key, value = self._windows(self.qkv(tokens), window_hw)
        mixed = self._mix(query, key, value, window_hw)  # (N * windows * heads, h * w, c)
        mixed = self._grid(mixed, tokens.shape, window_hw)
        return self.drop(self.proj(mixed[:, :grid_h, :grid_w]))

    def _windows(self, qkv: Tensor, window_hw: tuple[int, int]) -> tuple[Tensor, ...]:
        """Queries, keys and values by window: three (N * windows * heads, h * w, c)."""
        window_h, window_w = window_hw
        qkv = self._pad(qkv, -qkv.shape[1] % window_h, -qkv.shape[2] % window_w)
        split = qkv.unflatten(1, (-1, window_h)).unflatten(3, (-1, window_w))
        split = split.unflatten(5, (3, self.heads, -1))
        # (N, rows, h, columns, w, 3, heads, c) -> (3, N, rows, columns, heads, h, w, c)
        split = split.permute(5, 0, 1, 3, 6, 2, 4, 7)
        return split.flatten(5, 6).flatten(1, 4).unbind(0)

    def _pad(self, qkv: Tensor, pad_h: int, pad_w: int) -> Tensor:
        """Completes the last windows with the projection of zeros, which is the bias.

        Meta's code pads the tokens with zeros and projects them as well; the result is the same.
        """
        if not (pad_h or pad_w):
            return qkv
        padded = F.pad(qkv, (0, 0, 0, pad_w, 0, pad_h))
        if self.qkv.bias is None:
            return padded
        is_padding = padded.new_ones(padded.shape[1:3], dtype=torch.bool)
        is_padding[: qkv.shape[1], : qkv.shape[2]] = False
        return torch.where(is_padding[..., None], self.qkv.bias, padded)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, window_hw: tuple[int, int]) -> Tensor:
        """Attention with relative positions, for some heads or some rows of queries at a time."""
        window_h, window_w = window_hw
        queries = query.unflatten(1, window_hw)  # (B, h, w, c), B = N * windows * heads
        positions_h = _relative_positions(self.rel_pos_h, window_h).to(query.dtype)
        positions_w = _relative_positions(self.rel_pos_w, window_w).to(query.dtype)
        bias_h = torch.einsum("bhwc,hkc->bhwk", queries, positions_h)
        bias_w = torch.einsum("bhwc,wkc->bhwk", queries, positions_w)
        if _is_in_pieces(self, query):
            return self._mix_products(queries, key, value, bias_h, bias_w)
        is_fused = self.config._attn_implementation != "eager" and _biases_are_fused(query)
        if is_fused and query.shape[-1] + window_h + window_w <= _FUSED_CHANNELS:
            return self._mix_fused(query, key, value, bias_h, bias_w)
        bias_h, bias_w = bias_h[..., :, None], bias_w[..., None, :]
        parts = []
        for some, rows in self._parts(query, window_hw):
            bias = bias_h[some, rows] + bias_w[some, rows]  # (b, rows, w, h, w)
            mixed = _attend(
                queries[some, rows].flatten(1, 2),
                key[some],
                value[some],
                bias.flatten(3, 4).flatten(1, 2),
                self.drop_attention if self.training else 0.0,
                self.config._attn_implementation,
            )
            parts.append(mixed.flatten(0, 1))  # the last rows may be fewer
        return torch.cat(parts).view_as(query)

    def _mix_products(
        self, queries: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
    ) -> Tensor:
        """As `_mix`, where oneDNN multiplies.

        The bias of a query for a key is a number for the key's row and one for its column: each is
        added in place, while the scores are in the cache.
        """
        queries = queries * queries.shape[-1] ** -0.5
        values = value.mT.contiguous().mT
        parts = []
        for some, rows in self._parts(key, (queries.shape[1], queries.shape[2])):
            scores = _product(queries[some, rows].flatten(1, 2), key[some].mT)
            by_axis = scores.view(*bias_h[some, rows].shape, bias_w.shape[-1])
            by_axis.add_(bias_h[some, rows, :, :, None]).add_(bias_w[some, rows, :, None])
            parts.append(_product(scores.softmax(-1), values[some]).flatten(0, 1))
        return torch.cat(parts).view_as(value)

    def _mix_fused(
        self, query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
    ) -> Tensor:
        """As `_mix`, in one fused attention that writes neither scores nor biases out.

        A bias is a product as well: of the query's biases for every row and column with zeros and
        a one for the row, and for the column, that the key is in.
        """
        (height, width), channels = (bias_h.shape[-1], bias_w.shape[-1]), query.shape[-1]
        rows = torch.eye(height, device=key.device, dtype=key.dtype).repeat_interleave(width, dim=0)
        columns = torch.eye(width, device=key.device, dtype=key.dtype).repeat(height, 1)
        places = torch.cat([rows, columns], dim=-1).expand(len(key), -1, -1)  # (B, h * w, h + w)
        scaled = query * channels**-0.5
        query = torch.cat([scaled, bias_h.flatten(1, 2), bias_w.flatten(1, 2)], dim=-1)
        mixed = F.scaled_dot_product_attention(
            query.unflatten(0, (-1, self.heads)),
            torch.cat([key, places], dim=-1).unflatten(0, (-1, self.heads)),
            F.pad(value, (0, height + width)).unflatten(0, (-1, self.heads)),
            dropout_p=self.drop_attention if self.training else 0.0,
            scale=1.0,
        )
        return mixed.flatten(0, 1)[..., :channels]

    def _parts(self, query: Tensor, window_hw: tuple[int, int]) -> list[tuple[slice, slice]]:
        """Which of (B, h, w, c) queries attend together: several B with all rows, or few rows."""
        everything = slice(None)
        if torch.compiler.is_compiling():
            return [(everything, everything)]
        (window_h, window_w), keys = window_hw, query.shape[1]
        scores = _SCORES_AT_ONCE[query.device.type == "cpu"]
        length, rows = scores // keys**2, max(1, scores // (window_w * keys))
        if length:
            return [
                (slice(start, start + length), everything) for start in range(0, len(query), length)
            ]
        starts = product(range(len(query)), range(0, window_h, rows))
        return [(slice(one, one + 1), slice(row, row + rows)) for one, row in starts]

    def _grid(self, mixed: Tensor, shape: torch.Size, window_hw: tuple[int, int]) -> Tensor:
        """Puts windows back side by side: (N, padded H'', padded W'', C)."""
        window_h, window_w = window_hw
        windows = (shape[0], -(-shape[1] // window_h), -(-shape[2] // window_w), self.heads)
        grid = mixed.unflatten(0, windows).unflatten(
            4, window_hw
        )  # (N, rows, columns, heads, h, w, c)
        return grid.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def _is_in_pieces(layer: nn.Module, features: Tensor) -> bool:
    """Whether pieces that fit the cache are worth it: on a processor, not while training.

    A graph that is traced stays small, and drop rates act on whole images.
    """
    is_traced = torch.compiler.is_compiling()
    return features.device.type == "cpu" and not layer.training and not is_traced


class EncoderBlock(GradientCheckpointingLayer):
    """Attention and perceptron, each normalised before and added to its input."""

    def __init__(self, config: SegmentAnythingModelConfig, index: int) -> None:
        """Attends globally where the configuration lists `index`, else in windows."""
        super().__init__()
        width, eps = config.encoder_embed_dim, ENCODER_NORM_EPS[config.encoder_norm_layer]
        is_global = index in config.encoder_global_attn_indices or not config.encoder_window_size
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = EncoderAttention(config, is_global)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Perceptron(
            width,
            int(width * config.encoder_mlp_ratio),
            _ACTIVATIONS[config.encoder_act_layer],
            config.encoder_drop_rate,
        )
        last = max(1, config.encoder_nb_blocks - 1)
        self.drop_path_rate = config.encoder_drop_path_rate * index / last

    def forward(self, tokens: Tensor) -> Tensor:
        """Refines the tokens: (N, H'', W'', C) to the same shape.

        On a processor, strips of windows one after another, which do not see each other. What is
        made of a strip stays in the cache, where that of all tokens would not.
        """
        if not _is_in_pieces(self, tokens):
            return self._perceive(self._attend(tokens))
        if self.attn.window_size:
            strips = tokens.split(self.attn.window_size, dim=1)
            return torch.cat([self._perceive(self._attend(strip)) for strip in strips], dim=1)
        strips = self._attend(tokens).split(_ROWS_AT_ONCE, dim=1)
        return torch.cat([self._perceive(strip) for strip in strips], dim=1)

    def _attend(self, tokens: Tensor) -> Tensor:
        return tokens + self._drop_path(self.attn(self.norm1(tokens)))

    def _perceive(self, tokens: Tensor) -> Tensor:
        return tokens + self._drop_path(self.mlp(self.norm2(tokens)))

    def _drop_path(self, branch: Tensor) -> Tensor:
        """Leaves the branch out for some images in training (arXiv:1603.09382)."""
        if not self.training or self.drop_path_rate == 0.0:
            return branch
        keep = 1.0 - self.drop_path_rate
        kept = torch.rand(branch.shape[0], 1, 1, 1, device=branch.device) < keep
        return branch * kept.to(branch.dtype) / keep


class PatchEmbedding(nn.Module):
    """One token for each patch of the image."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """A convolution whose kernel and stride are the patch size."""
        super().__init__()
        patch = config.encoder_patch_size
        self.proj = nn.Conv2d(config.in_channels, config.encoder_embed_dim, patch, patch)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (N, H'', W'', C) of images (N, C, H, W)."""
        return self.proj(pixel_values).permute(0, 2, 3, 1)


class ImageEncoder(nn.Module):
    """Vision transformer with windowed and global attention, and a convolutional neck."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the blocks that the configuration describes."""
        super().__init__()
        width, depth = config.encoder_embed_dim, config.embed_dim
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, *config.grid_size(), width))
        self.drop = nn.Dropout(config.encoder_drop_rate)
        self.blocks = nn.ModuleList(
            EncoderBlock(config, index) for index in range(config.encoder_nb_blocks)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, depth, kernel_size=1, bias=False),
            LayerNorm2d(depth),
            nn.Conv2d(depth, depth, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(depth),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Image embeddings (N, D, H'', W'') of normalised, padded images (N, C, H, W)."""
        if _is_in_pieces(self, pixel_values):  # a batch would win nothing there
            return torch.cat([self._encode(image) for image in pixel_values.split(1)])
        return self._encode(pixel_values)

    def _encode(self, pixel_values: Tensor) -> Tensor:
        tokens = self.patch_embed(pixel_values)
        tokens = self.drop(tokens + self._positions(tokens.shape[1], tokens.shape[2]))
        for block in self.blocks:
            tokens = block(tokens)
        return self.neck(tokens.permute(0, 3, 1, 2))

    def _positions(self, grid_h: int, grid_w: int) -> Tensor:
        """Absolute positions, resampled bilinearly for a grid of another size."""
        if self.pos_embed.shape[1:3] == (grid_h, grid_w):
            return self.pos_embed
        channels_first = self.pos_embed.permute(0, 3, 1, 2).float()
        resampled = F.interpolate(channels_first, (grid_h, grid_w), mode="bilinear")
        return resampled.permute(0, 2, 3, 1).to(self.pos_embed.dtype)


# ----------------------------------------------------------------------------- prompt encoder


class PositionEncoding(nn.Module):
    """Random Fourier features of positions in the image (arXiv:2006.10739), always in float32."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        """Draws the frequencies: a (2, width / 2) matrix for x and y."""
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, points_xy: Tensor) -> Tensor:
        """Encodings (..., D) of points (..., 2) in [0, 1], x before y."""
        frequencies = self.positional_encoding_gaussian_matrix.float()
        with torch.autocast(points_xy.device.type, enabled=False):
            angles = 2.0 * math.pi * ((2.0 * points_xy.float() - 1.0) @ frequencies)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def of_grid(self, grid_h: int, grid_w: int) -> Tensor:
        """Encodings (H'', W'', D) of the centres of a grid's cells."""
        device = self.positional_encoding_gaussian_matrix.device
        centres_y = (torch.arange(grid_h, device=device) + 0.5) / grid_h
        centres_x = (torch.arange(grid_w, device=device) + 0.5) / grid_w
        return self(torch.stack(torch.meshgrid(centres_x, centres_y, indexing="xy"), dim=-1))


class PromptEncoder(nn.Module):
    """Embeds points and boxes as tokens and masks as a grid."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one embedding for each kind of point: background, foreground, two corners."""
        super().__init__()
        width, hidden = config.embed_dim, config.prompt_mask_hidden_dim
        self.pe_layer = PositionEncoding(width)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, width)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, hidden // 4, kernel_size=2, stride=2),
            LayerNorm2d(hidden // 4),
            nn.GELU(),
            nn.Conv2d(hidden // 4, hidden, kernel_size=2, stride=2),
            LayerNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, width)

    def forward(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
        input_hw: tuple[int, int],
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Embeds the prompts of every prompt set.

        Args:
            points: (N, P, M1, 2) in pixels of the model input, or None.
            labels: (N, P, M1), with points only.
            boxes: (N, P, M2, 4), or None.
            masks: (N, P or 1, M3, H', W') logits, or None; a mask of NaN does not exist.
            input_hw: Size (H, W) of the model input.

        Returns:
            Tokens (N, P, M, D), None without points and boxes. Dense embeddings
            (N, P or 1, D, H'' or 1, W'' or 1). Which tokens exist (N, P, M), None if all do.
        """
        tokens, exists = self._tokens(points, labels, boxes, input_hw)
        dense = self.no_mask_embed.weight[None, None, 0, :, None, None]  # (1, 1, D, 1, 1)
        if masks is not None:
            dense = self._embed_masks(masks, dense)
        return tokens, dense, exists

    def _tokens(
        self,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        input_hw: tuple[int, int],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of points and boxes; a set of points without a box ends in "not a point"."""
        parts, existing = [], []
        if points is not None and labels is not None:
            is_point = labels != PADDING
            lacks_box = is_point.any(-1, keepdim=True)
            if boxes is not None:
                lacks_box = lacks_box & ~_is_box(boxes).any(-1, keepdim=True)
            nothing = self.not_a_point_embed.weight.expand(*labels.shape[:2], 1, -1)
            parts += [self._embed_points(points, labels, input_hw), nothing]
            existing += [is_point, lacks_box]
        if boxes is not None:
            parts.append(self._embed_boxes(boxes, input_hw))
            existing.append(_is_box(boxes).repeat_interleave(2, dim=-1))
        if not parts:
            return None, None
        exists = torch.cat(existing, dim=-1)
        if not torch.compiler.is_compiling() and bool(exists.all()):
            return torch.cat(parts, dim=2), None
        return torch.cat(parts, dim=2), exists

    def _embed_points(self, points: Tensor, labels: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Tokens (N, P, M1, D): position and kind; -1 is a point without a position."""
        background, foreground = self._kind(0), self._kind(1)
        positions = self._encode(points, input_hw).to(foreground.dtype)
        kinds = labels[..., None]
        tokens = torch.where(kinds == 1, positions + foreground, positions)
        tokens = torch.where(kinds == 0, positions + background, tokens)
        return torch.where(kinds == -1, self.not_a_point_embed.weight, tokens)

    def _embed_boxes(self, boxes: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Tokens (N, P, 2 M2, D) of the left top and right bottom corners."""
        kinds = torch.cat([self._kind(2), self._kind(3)])
        corners = self._encode(boxes.unflatten(-1, (2, 2)), input_hw)  # (N, P, M2, 2, D)
        return (corners.to(kinds.dtype) + kinds).flatten(2, 3)

    def _kind(self, index: int) -> Tensor:
        """Embedding (1, D) of a kind of point: background, foreground, left top, right bottom."""
        return self.point_embeddings.get_parameter(f"{index}.weight")

    def _encode(self, points_xy: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """Position encodings of pixels; half a pixel moves their corner to their centre."""
        size_wh = torch.tensor(input_hw[::-1], device=points_xy.device, dtype=torch.float32)
        return self.pe_layer((points_xy.float() + 0.5) / size_wh)

    def _embed_masks(self, masks: Tensor, no_mask: Tensor) -> Tensor:
        """Embeddings (N, P, D, H'', W''), summed over the masks of a prompt set."""
        exists = ~masks[..., 0, 0].isnan()  # (N, P, M3)
        logits = masks.nan_to_num().to(no_mask.dtype).flatten(0, 2)[:, None]
        embeddings = self.mask_downscaling(logits).unflatten(0, masks.shape[:3])
        embeddings = (embeddings * exists[..., None, None, None]).sum(2)
        return torch.where(exists.any(-1)[..., None, None, None], embeddings, no_mask)


def _is_box(boxes: Tensor) -> Tensor:
    """Which boxes exist: (N, P, M2) of (N, P, M2, 4)."""
    return (boxes != PADDING).any(-1)


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

    scale: Tensor  # (N, P, 1, L)
    weights: Tensor  # (N, P, m, L)
    rows: Tensor  # (N, P, m, D)
    bias: Tensor  # (D)
    values: tuple[Tensor, ...]  # (N, h, P, t, c) of each attention that added rows


class ProjectedImage(NamedTuple):
    """A linear layer's output for the tokens that all prompt sets share, by head."""

    layer: nn.Linear
    shared: Tensor  # (N, h, S, c, L), S is P where masks tell the prompt sets' images apart, else 1
    positions: Tensor | None  # (h, c, L); None where the shared tokens have them added already

    @classmethod
    def of(
        cls, layer: nn.Linear, heads: int, shared: Tensor, positions: Tensor | None = None
    ) -> Self:
        """Projects shared tokens (N, S, L, D) and positions (L, D), without the layer's bias."""
        projected = (layer.weight @ shared.mT).unflatten(2, (heads, -1)).transpose(1, 2)
        if positions is None:
            return cls(layer, projected, None)
        return cls(layer, projected, (layer.weight @ positions.T).unflatten(0, (heads, -1)))

    @property
    def weight(self) -> Tensor:
        """The layer's weight by head: (h, c, D)."""
        return self.layer.weight.unflatten(0, (self.shared.shape[1], -1))

    def scores(self, vectors: Tensor, image: PromptedImage | None) -> Tensor:
        """Products (N, h, P, T, L) of vectors (N, h, P, T, c) with every projected image token.

        What adds the same to all tokens of the image, its bias and the layer's, is left out.
        """
        of_shared = _shared_product(vectors, self.shared)
        if image is None:
            return of_shared
        of_rows = (vectors @ self.weight[:, None]).transpose(1, 2).flatten(2, 3) @ image.rows.mT
        of_rows = (
            _product(of_rows, image.weights).unflatten(2, vectors.shape[1:4:2]).transpose(1, 2)
        )
        scores = torch.addcmul(of_rows, image.scale[:, None], of_shared)
        if self.positions is None:
            return scores
        return scores + _shared_product(vectors, self.positions[None, :, None])

    def constant(self, image: PromptedImage | None) -> Tensor:
        """What the layer adds to all tokens of the image alike: (h, 1, 1, c)."""
        bias: Tensor = self.layer.bias
        if image is not None:
            bias = F.linear(image.bias, self.layer.weight, bias)
        return bias.view(self.shared.shape[1], 1, 1, -1)

    def offsets(self, vectors: Tensor, image: PromptedImage | None) -> Tensor:
        """What `scores` leaves out: (N, h, P, T, 1)."""
        return vectors @ self.constant(image).mT

    def mix(self, attention: Tensor, image: PromptedImage | None) -> Tensor:
        """Projected image tokens weighted by attention (N, h, P, T, L): (N, h, P, T, c)."""
        if image is None:
            return _shared_product(attention, self.shared.mT) + self.constant(image)
        of_shared = _shared_product(attention * image.scale[:, None], self.shared.mT)
        by_set = attention.transpose(1, 2).flatten(2, 3)
        row_weights = _product(by_set, image.weights.mT)  # (N, P, hT, m)
        row_weights = row_weights.unflatten(2, attention.shape[1:4:2]).transpose(1, 2)
        rows = (image.rows @ self.layer.weight.T).unflatten(3, (self.shared.shape[1], -1))
        mixed = of_shared + row_weights @ rows.permute(0, 3, 1, 2, 4)
        return mixed + self.constant(image)  # attention sums to one


def _shared_product(vectors: Tensor, shared: Tensor) -> Tensor:
    """Products (N, h, P, T, a) of (N, h, P, T, b) with (N, h, P or 1, b, a).

    With one shared matrix the vectors of all prompt sets line up as rows of one product.
    """
    if shared.shape[2] != 1 or vectors.shape[2] == 1:
        return vectors @ shared
    return (vectors.flatten(2, 3) @ shared[:, :, 0]).unflatten(2, vectors.shape[2:4])


class DecoderAttention(nn.Module):
    """Multi-head attention whose inner width may be smaller than that of its input."""

    def __init__(
        self, config: SegmentAnythingModelConfig, downsampling: int = DECODER_DOWNSAMPLING
    ) -> None:
        """Projects to the embedding width over `downsampling`, and back."""
        super().__init__()
        width = config.embed_dim
        self.config = config
        self.heads = config.decoder_nb_heads
        self.q_proj = Linear(width, width // downsampling)
        self.k_proj = Linear(width, width // downsampling)
        self.v_proj = Linear(width, width // downsampling)
        self.out_proj = Linear(width // downsampling, width)

    def by_head(self, tokens: Tensor) -> Tensor:
        """Projected tokens (N, P, T, h c) as (N, h, P, T, c)."""
        return tokens.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4)

    def joined(self, mixed: Tensor) -> Tensor:
        """The output (N, P, T, D) of all heads (N, h, P, T, c)."""
        return self.out_proj(mixed.permute(0, 2, 3, 1, 4).flatten(3))


class SelfAttention(DecoderAttention):
    """The tokens of a prompt set attend to each other."""

    def forward(self, placed: Tensor, tokens: Tensor, exists: Tensor | None) -> Tensor:
        """Attends from and to `placed`, (N, P, T, D) with positions, for values of `tokens`.

        Where `exists` (N, P, T) is False, a token is padding.
        """
        query, key = self.by_head(self.q_proj(placed)), self.by_head(self.k_proj(placed))
        value = self.by_head(self.v_proj(tokens))  # (N, h, P, T, c)
        bias = None
        if exists is not None:
            bias = _hiding(exists, query.dtype)[:, None, :, None]
            bias = bias.expand(-1, self.heads, -1, query.shape[3], -1).flatten(1, 2)
        mixed = _attend(
            query.flatten(1, 2),
            key.flatten(1, 2),
            value.flatten(1, 2),
            bias,
            0.0,
            self.config._attn_implementation,
        )
        return self.joined(mixed.unflatten(1, query.shape[1:3]))


def _hiding(exists: Tensor, dtype: torch.dtype) -> Tensor:
    """What added to scores makes an attention pass over the tokens that do not exist."""
    hidden = torch.zeros_like(exists, dtype=dtype)
    return hidden.masked_fill(~exists, torch.finfo(dtype).min)


class TokenToImageAttention(DecoderAttention):
    """The tokens of a prompt set attend to the image."""

    def project(
        self, shared: Tensor, positions: Tensor, is_first: bool
    ) -> tuple[ProjectedImage, ProjectedImage]:
        """Keys and values of shared image tokens (N, S, L, D), for any prompt."""
        keys = _project_placed(self.k_proj, self.heads, shared, positions, is_first)
        return keys, ProjectedImage.of(self.v_proj, self.heads, shared)

    def forward(
        self,
        placed: Tensor,
        projected: tuple[ProjectedImage, ProjectedImage],
        image: PromptedImage | None,
    ) -> Tensor:
        """What tokens (N, P, T, D), with their positions, see in the image."""
        keys, values = projected
        query = self.by_head(self.q_proj(placed))
        query = query * query.shape[-1] ** -0.5
        scores = keys.scores(query, image)
        if torch.is_grad_enabled():
            # Equal for all keys, it changes nothing, but what trains on several devices in
            # parallel wants a gradient of every parameter, even of the key's bias.
            scores = scores + keys.offsets(query, image)
        return self.joined(values.mix(scores.softmax(-1), image))


class ImageToTokenAttention(DecoderAttention):
    """The image attends to the tokens of a prompt set."""

    def project(self, shared: Tensor, positions: Tensor, is_first: bool) -> ProjectedImage:
        """Queries of shared image tokens (N, S, L, D), for any prompt."""
        return _project_placed(self.q_proj, self.heads, shared, positions, is_first)

    def forward(
        self,
        placed: Tensor,
        tokens: Tensor,
        queries: ProjectedImage,
        image: PromptedImage | None,
        exists: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the image sees in the tokens, as weighted sums.

        Returns:
            Weights (N, P, m, L) and values (N, h, P, m / h, c) of the rows that are summed, before
            the output projection; and what every image token sees alike (N, P, D).
        """
        key = self.by_head(self.k_proj(placed)) * (self.k_proj.out_features // self.heads) ** -0.5
        value = self.by_head(self.v_proj(tokens))
        offsets = queries.offsets(key, image)
        if exists is not None:
            offsets = offsets + _hiding(exists, key.dtype)[:, None, :, :, None]
        attention = (queries.scores(key, image) + offsets).softmax(3)  # (N, h, P, T, L)
        count, width = value.shape[3:]
        if isinstance(count, int) and count <= width:
            # The weights of a head sum to one, so the first token needs no row.
            first = value[:, :, :, :1]
            weights, value, alike = attention[:, :, :, 1:], value[:, :, :, 1:] - first, first
        else:  # fewer rows: a head's own channels, weighted by what it sees of the tokens
            weights = value.mT @ attention
            value = torch.eye(width, dtype=value.dtype, device=value.device)
            value = value.expand(*weights.shape[:3], -1, -1)
            alike = torch.zeros_like(value[:, :, :, :1])
        return weights.transpose(1, 2).flatten(2, 3), value, self.joined(alike)[:, :, 0]


def _project_placed(
    layer: nn.Linear, heads: int, shared: Tensor, positions: Tensor, is_first: bool
) -> ProjectedImage:
    """The projection of tokens and positions, in one where nothing scales the tokens yet."""
    if is_first:
        return ProjectedImage.of(layer, heads, shared + positions)
    return ProjectedImage.of(layer, heads, shared, positions)


class SharedNorm(NamedTuple):
    """What an `ImageNorm` needs to know of the tokens that all prompt sets share."""

    tokens: Tensor  # (N, S, L, D), centred
    squares: Tensor  # (N, S, 1, L) their mean squares
    directions: tuple[Tensor, ...]  # (N, h, S, c, L) their products with each attention's output

    @classmethod
    def of(cls, shared: Tensor, outputs: Sequence[Tensor]) -> Self:
        """From shared tokens (N, S, L, D) and output weights (D, h, c) of the attentions so far."""
        tokens = _centred(shared)
        scaled = tokens / tokens.shape[-1]
        return cls(
            tokens,
            tokens.square().mean(-1)[:, :, None],
            tuple(
                (output.flatten(1).T @ scaled.mT).unflatten(2, output.shape[1:]).transpose(1, 2)
                for output in outputs
            ),
        )

    def products(self, rows: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Mean products (N, P, m, L) of the shared tokens with the rows.

        Rows of attentions are their values times an output weight, of which the product with the
        shared tokens is known. The others, one an attention, come first.
        """
        count = len(values)
        plain = rows[:, None, :, :count] / rows.shape[-1]
        parts = [_shared_product(plain, self.tokens.mT[:, None])[:, 0]]
        for value, direction in zip(values, self.directions, strict=True):
            parts.append(_shared_product(value, direction).transpose(1, 2).flatten(2, 3))
        return torch.cat(parts, dim=2)


class ImageNorm(nn.LayerNorm):
    """Layer norm of image tokens that are never written out, see `PromptedImage`."""

    def forward(  # type: ignore[override]
        self, image: PromptedImage, shared: SharedNorm
    ) -> PromptedImage:
        """Tokens of mean 0 and variance 1 over the channels, then scaled and shifted.

        The variance is a quadratic form in scale and weights.
        """
        rows = _centred(image.rows)
        row_products = (rows / rows.shape[-1]) @ rows.mT  # (N, P, m, m)
        products = torch.addcmul(
            _product(row_products, image.weights),
            image.scale,
            shared.products(rows, image.values),
            value=2,
        )
        of_rows = (image.weights * products).sum(2, keepdim=True)
        variance = torch.addcmul(of_rows, image.scale.square(), shared.squares)
        deviation = (variance.clamp(min=0.0) + self.eps).rsqrt()
        return image._replace(
            scale=image.scale * deviation,
            weights=image.weights * deviation,
            rows=rows * self.weight,
            bias=self.bias,
        )


def _centred(tokens: Tensor) -> Tensor:
    return tokens - tokens.mean(-1, keepdim=True)


class SharedBlock(NamedTuple):
    """What a `TwoWayBlock` needs to know of the tokens that all prompt sets share."""

    keys_values: tuple[ProjectedImage, ProjectedImage]
    queries: ProjectedImage
    norm: SharedNorm


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, config: SegmentAnythingModelConfig, is_first: bool) -> None:
        """The first block's tokens are their own positions: it does not add them again."""
        super().__init__()
        width = config.embed_dim
        self.self_attn = SelfAttention(config, downsampling=1)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = TokenToImageAttention(config)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Perceptron(width, config.decoder_mlp_channels, F.relu)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = ImageNorm(width)
        self.cross_attn_image_to_token = ImageToTokenAttention(config)
        self.is_first = is_first

    def share(
        self, shared: Tensor, positions: Tensor, outputs: list[Tensor]
    ) -> tuple[SharedBlock, Tensor, list[Tensor]]:
        """The part of the block's work that no prompt changes.

        Args:
            shared: (N, S, L, D) image tokens.
            positions: (L, D).
            outputs: (D, h, c), output weights of the attentions of earlier blocks to the tokens.

        Returns:
            The work, and shared tokens and output weights for the next block.
        """
        attention = self.cross_attn_image_to_token
        outputs = [*outputs, attention.out_proj.weight.unflatten(1, (attention.heads, -1))]
        outputs = [output - output.mean(0, keepdim=True) for output in outputs]
        norm = SharedNorm.of(shared, outputs)
        block = SharedBlock(
            self.cross_attn_token_to_image.project(shared, positions, self.is_first),
            attention.project(shared, positions, self.is_first),
            norm,
        )
        weight = self.norm4.weight
        return block, norm.tokens * weight, [output * weight[:, None, None] for output in outputs]

    def forward(
        self,
        tokens: Tensor,
        image: PromptedImage | None,
        token_positions: Tensor,
        shared: SharedBlock,
        exists: Tensor | None,
    ) -> tuple[Tensor, PromptedImage]:
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
        tokens: Tensor,
        image: PromptedImage | None,
        token_positions: Tensor,
        queries: ProjectedImage,
        exists: Tensor | None,
    ) -> PromptedImage:
        """The image with what it sees in the tokens added, and its bias as a row like others."""
        attention = self.cross_attn_image_to_token
        weights, values, alike = attention(tokens + token_positions, tokens, queries, image, exists)
        output = attention.out_proj.weight.unflatten(1, (attention.heads, -1))
        rows = (values @ output.permute(1, 2, 0)[:, None]).transpose(1, 2).flatten(2, 3)
        ones = torch.ones_like(weights[:, :, :1])
        if image is None:
            return PromptedImage(
                ones,
                torch.cat([ones, weights], dim=2),
                torch.cat([alike[:, :, None], rows], dim=2),
                torch.zeros_like(alike[0, 0]),
                (values,),
            )
        return image._replace(
            weights=torch.cat([ones, image.weights, weights], dim=2),
            rows=torch.cat([(alike + image.bias)[:, :, None], image.rows, rows], dim=2),
            values=(*image.values, values),
        )


class SharedImage(NamedTuple):
    """The part of the transformer's work that no prompt changes."""

    blocks: list[SharedBlock]
    last: tuple[ProjectedImage, ProjectedImage]
    tokens: Tensor  # (N, S, L, D), the shared part of the image's last tokens


class TwoWayTransformer(nn.Module):
    """Lets the tokens of a prompt set and the image inform each other."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the blocks, and the tokens' last look at the image."""
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(config, is_first=index == 0) for index in range(config.decoder_nb_blocks)
        )
        self.final_attn_token_to_image = TokenToImageAttention(config)
        self.norm_final_attn = nn.LayerNorm(config.embed_dim)

    def share(self, image: Tensor, positions: Tensor) -> SharedImage:
        """Does the work that no prompt changes, for image tokens (N, S, L, D) and their positions.

        S is 1 where all prompt sets share the image, P where masks tell their images apart.
        """
        blocks: list[SharedBlock] = []
        outputs: list[Tensor] = []
        layer: Any
        for layer in self.layers:
            block, image, outputs = layer.share(image, positions, outputs)
            blocks.append(block)
        last = self.final_attn_token_to_image.project(image, positions, is_first=False)
        return SharedImage(blocks, last, image)

    def forward(
        self, tokens: Tensor, shared: SharedImage, exists: Tensor | None
    ) -> tuple[Tensor, PromptedImage]:
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


class LayeredPerceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, width: int, hidden: int, out: int, depth: int) -> None:
        """Maps `width` to `out` through `depth` layers."""
        super().__init__()
        widths = [width, *[hidden] * (depth - 1), out]
        self.layers = nn.ModuleList(Linear(before, after) for before, after in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Transforms the last axis."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


class DecodedPrompts(NamedTuple):
    """What is known of prompt sets before their masks are made."""

    iou_scores: Tensor  # (N, P, 1 + K)
    mask_tokens: Tensor  # (N, P, 1 + K, D)
    image: PromptedImage
    upscaled: Tensor  # (N, S, L, D), shared tokens after the first transposed convolution
    grid_hw: tuple[int, int]

    def split(self) -> list[Self]:
        """A few of the prompt sets at a time, as many as should be upscaled together."""
        length = _SETS_UPSCALED_AT_ONCE[self.upscaled.device.type == "cpu"]
        count = self.iou_scores.shape[1]
        return [self.of_sets(slice(start, start + length)) for start in range(0, count, length)]

    def of_sets(self, sets: slice | list[int]) -> Self:
        """Some of the prompt sets."""
        scale, weights, rows, bias, _ = self.image
        return self._replace(
            iou_scores=self.iou_scores[:, sets],
            mask_tokens=self.mask_tokens[:, sets],
            image=PromptedImage(scale[:, sets], weights[:, sets], rows[:, sets], bias, ()),
            upscaled=self.upscaled if self.upscaled.shape[1] == 1 else self.upscaled[:, sets],
        )


def _joined(parts: Iterator[Tensor], count: int) -> Tensor:
    """Parts, of so many rows along the second axis in all, joined along it.

    Without gradients each is written into its place: small results that stay, among large ones
    that go, would scatter the free memory.
    """
    if torch.is_grad_enabled():
        return torch.cat([*parts], dim=1)
    first = next(parts)
    joined = first.new_empty(first.shape[0], count, *first.shape[2:])
    start = 0
    for part in chain([first], parts):
        joined[:, start : start + part.shape[1]] = part
        start += part.shape[1]
    return joined


class MaskDecoder(nn.Module):
    """Predicts masks, and the quality of each, from image and prompts."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Makes one output token for each mask and one for their quality."""
        super().__init__()
        width, masks = config.embed_dim, config.nb_multimask_outputs + 1
        self.prompts_per_group: int | None = None
        self._last_shared: tuple | None = None
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(masks, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(width, width // 4, kernel_size=2, stride=2),
            LayerNorm2d(width // 4),
            nn.GELU(),
            nn.ConvTranspose2d(width // 4, width // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            LayeredPerceptron(width, width, width // 8, 3) for _ in range(masks)
        )
        self.iou_prediction_head = LayeredPerceptron(
            width, config.decoder_iou_hidden_dim, masks, config.decoder_iou_head_depth
        )

    def forward(
        self,
        image_embeddings: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        dense_embeddings: Tensor,
        exists: Tensor | None,
        selection: slice,
    ) -> tuple[Tensor, Tensor]:
        """Predicts the selected masks of every prompt set.

        Args:
            image_embeddings: (N, D, H'', W'').
            image_positions: (H'', W'', D).
            prompt_tokens: (N, P, M, D) or None.
            dense_embeddings: (N or 1, P or 1, D, H'' or 1, W'' or 1).
            exists: (N, P, M), False where a prompt is padding, or None.
            selection: Which of the masks: 0 is the single one, the others are the multiple ones.

        Returns:
            Mask logits (N, P, K, H', W') and predicted qualities (N, P, K).
        """
        chosen = range(self.mask_tokens.num_embeddings)[selection]
        decoded = self.decode(
            image_embeddings, image_positions, prompt_tokens, dense_embeddings, exists
        )
        if torch.compiler.is_compiling():
            (whole,) = decoded
            return self.masks(whole, chosen), whole.iou_scores[..., selection]
        scores: list[Tensor] = []

        def in_parts() -> Iterator[Tensor]:
            for group in decoded:
                scores.append(group.iou_scores[..., selection])
                yield from (self.masks(part, chosen) for part in group.split())

        sets = dense_embeddings if prompt_tokens is None else prompt_tokens
        return _joined(in_parts(), sets.shape[1]), torch.cat(scores, dim=1)

    def decode(
        self,
        image_embeddings: Tensor,
        image_positions: Tensor,
        prompt_tokens: Tensor | None,
        dense_embeddings: Tensor,
        exists: Tensor | None,
    ) -> Iterator[DecodedPrompts]:
        """All that is known of the masks before they are made, for some prompt sets at a time.

        Takes what `forward` takes.
        """
        outputs = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = outputs.expand(*image_embeddings.shape[:1], dense_embeddings.shape[1], -1, -1)
        if prompt_tokens is not None:
            tokens = tokens[:, :1].expand(-1, prompt_tokens.shape[1], -1, -1)
            tokens = torch.cat([tokens, prompt_tokens], dim=2)
        if exists is not None:
            exists = F.pad(exists, (outputs.shape[0], 0), value=True)
        positions = image_positions.flatten(0, 1).to(image_embeddings.dtype)
        is_shared = dense_embeddings.shape[1] == 1
        if is_shared:
            shared, upscaled = self._share_once(image_embeddings, dense_embeddings, positions)
        for group in self._groups(tokens.shape[1], image_embeddings):
            if not is_shared:
                image = image_embeddings[:, None] + dense_embeddings[:, group]
                shared, upscaled = self._share(image, positions)
            refined, prompted = self.transformer(
                tokens[:, group], shared, None if exists is None else exists[:, group]
            )
            yield DecodedPrompts(
                self.iou_prediction_head(refined[:, :, 0]),
                refined[:, :, 1:],
                prompted,
                upscaled,
                (image_embeddings.shape[2], image_embeddings.shape[3]),
            )

    def _share(self, image: Tensor, positions: Tensor) -> tuple[SharedImage, Tensor]:
        """What no prompt changes, for images (N, S, D, H'', W''), and its first upscaling."""
        shared = self.transformer.share(image.flatten(3).mT, positions)
        return shared, shared.tokens @ self._first_kernel()

    def _share_once(
        self, image_embeddings: Tensor, dense_embeddings: Tensor, positions: Tensor
    ) -> tuple[SharedImage, Tensor]:
        """As `_share`; for the image and the weights of the last call, what that call found."""
        parameters = [*self.parameters()]
        if (
            torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or len(image_embeddings) > 1
            or any(parameter.is_inference() for parameter in parameters)
        ):
            return self._share(image_embeddings[:, None] + dense_embeddings, positions)
        weights = [(parameter.data_ptr(), parameter._version) for parameter in parameters]
        given = image_embeddings, dense_embeddings, positions
        if self._last_shared is not None:
            last_given, last_weights, result = self._last_shared
            # The values, not the objects: whoever changes a tensor in place is safe.
            if weights == last_weights and all(map(torch.equal, given, last_given)):
                return result
        result = self._share(image_embeddings[:, None] + dense_embeddings, positions)
        self._last_shared = tuple(tensor.clone() for tensor in given), weights, result
        return result

    def _groups(self, sets: int, image_embeddings: Tensor) -> list[slice]:
        """Prompt sets that are decoded together.

        They are all of them in a graph that is traced, and for gradients on a GPU: these keep what
        all groups made, so that only a processor's cache is a reason for small ones.
        """
        is_cpu = image_embeddings.device.type == "cpu"
        length = self.prompts_per_group
        keeps_all = torch.is_grad_enabled() and not is_cpu and length is None
        if torch.compiler.is_compiling() or keeps_all:
            return [slice(None)]
        if length is None:
            positions = _POSITIONS_AT_ONCE[is_cpu]
            length = max(1, positions // image_embeddings[:, 0].numel())
        return [slice(start, start + length) for start in range(0, sets, length)]

    def masks(self, decoded: DecodedPrompts, chosen: Sequence[int]) -> Tensor:
        """Logits (N, P, K, H', W') of the chosen masks.

        Each mask's token weighs the channels of the upscaled image. A transposed convolution of
        stride and kernel 2 is a matrix product that makes four positions of one. They stay in
        that order until the masks, which are small, are sorted.
        """
        weights = torch.stack(
            [self.output_hypernetworks_mlps[k](decoded.mask_tokens[:, :, k]) for k in chosen], dim=2
        )  # (N, P, K, D / 8)
        layers: Any = self.output_upscaling
        features = layers[2](self._upscaled_once(decoded))  # (N, P, 4 L, D / 4)
        second = layers[3]
        kernel = second.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (4 D / 8, D / 4)
        features = _affine(features, kernel, second.bias.repeat(4), gelu=True)
        features = features.unflatten(3, (4, -1)).flatten(2, 3)  # (N, P, 16 L, D / 8)
        logits = _product(weights, features.mT)  # (N, P, K, 16 L)
        grid_h, grid_w = decoded.grid_hw
        logits = logits.unflatten(3, (grid_h, grid_w, 2, 2, 2, 2))
        # (N, P, K, H'', W'', Y, X, y, x) -> (N, P, K, H'', Y, y, W'', X, x)
        logits = logits.permute(0, 1, 2, 3, 5, 7, 4, 6, 8)
        return logits.flatten(6, 8).flatten(3, 5)

    def _upscaled_once(self, decoded: DecodedPrompts) -> Tensor:
        """The image after the first transposed convolution and its norm: (N, P, 4 L, D / 4)."""
        layers: Any = self.output_upscaling
        first, norm = layers[0], layers[1]
        image, kernel = decoded.image, self._first_kernel()
        bias = image.bias @ kernel + first.bias.repeat(4)
        features = _product(image.weights.mT, image.rows @ kernel)  # (N, P, L, D)
        features = torch.addcmul(features, image.scale.mT, decoded.upscaled) + bias
        features = features.unflatten(3, (4, -1)).flatten(2, 3)
        return F.layer_norm(features, norm.weight.shape, norm.weight, norm.bias, norm.eps)

    def _first_kernel(self) -> Tensor:
        """The first transposed convolution as a matrix: (D, 4 D / 4)."""
        first: Any = self.output_upscaling[0]
        return first.weight.permute(0, 2, 3, 1).flatten(1)


# -------------------------------------------------------------------------------------- model


class SegmentAnythingPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation, shared by all Segment Anything models."""

    config: SegmentAnythingModelConfig
    config_class = SegmentAnythingModelConfig
    base_model_prefix = "segment_anything"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False
    _no_split_modules = {"EncoderBlock", "TwoWayBlock"}  # noqa: RUF012, as the base class has it
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = {"pe_layer"}  # noqa: RUF012

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """Yes: every layer looks its implementation up in the configuration when it runs.

        The base class guesses from the source whether transformers' own attention functions are
        used, which know no bias that is made a few rows at a time.
        """
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, LayerNorm2d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PositionEncoding):
            init.normal_(module.positional_encoding_gaussian_matrix)
        elif isinstance(module, EncoderAttention):
            init.zeros_(module.rel_pos_h)
            init.zeros_(module.rel_pos_w)
        elif isinstance(module, ImageEncoder):
            init.zeros_(module.pos_embed)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: SegmentAnythingModelConfig | str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Model with the weights of a preset, a folder, a Hub repository or a Meta checkpoint.

        Reads, whatever names and sizes the weights have: a preset ("sam_vit_t" lies inside the
        package), a folder or Hub repository of ours or of transformers' SAM, a `.pth` file of
        Meta's. `in_channels` and `input_size` may differ from the checkpoint's: the weights adapt.

        Args:
            pretrained_model_name_or_path: The preset's name, folder, repository or file.
            model_args: Passed on to the class.
            config: The configuration to use instead of the checkpoint's.
            kwargs: Fields of the configuration to replace (such as `input_size`), and everything
                that `PreTrainedModel.from_pretrained` takes (`dtype`, `revision`, `token`, ...).

        Raises:
            OSError: No such preset, file, folder or repository, or a file that cannot be read.
            ValueError: The weights do not fit the model, each named with the shapes.
        """
        from .checkpoints import load_checkpoint

        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, *model_args, config=config, **kwargs)
        config, weights, kwargs = load_checkpoint(
            pretrained_model_name_or_path, cls.config_class, config, kwargs
        )
        if not kwargs.get("ignore_mismatched_sizes"):
            cls._check_weights(config, weights, str(pretrained_model_name_or_path))
        model = super().from_pretrained(
            None, *model_args, config=config, state_dict=weights, **kwargs
        )
        loaded = model[0] if isinstance(model, tuple) else model
        loaded.name_or_path = str(pretrained_model_name_or_path)
        return model

    @classmethod
    def _check_weights(
        cls, config: SegmentAnythingModelConfig, weights: dict[str, Tensor], source: str
    ) -> None:
        """Refuses weights of other shapes; names that are missing or too many only warn."""
        with torch.device("meta"):
            expected = cls(config).state_dict()
        if not expected.keys() & weights.keys():
            raise ValueError(
                f"{source} holds no weight of {cls.__name__}: its names are "
                f"{sorted(weights)[:3]} and so on, expected {sorted(expected)[:3]} and so on."
            )
        wrong = [
            f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ]
        if wrong:
            raise ValueError(
                f"{len(wrong)} weights of {source} do not fit the configuration: "
                f"{'; '.join(wrong)}. Load with the checkpoint's own configuration, or with "
                "ignore_mismatched_sizes=True to start these from random values."
            )


class SegmentAnythingModel(SegmentAnythingPreTrainedModel):
    """Segment Anything: masks for points, boxes and masks in an image."""

    def __init__(self, config: SegmentAnythingModelConfig) -> None:
        """Builds the model that the configuration describes, with random weights."""
        super().__init__(config)
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The layer that turns an image into tokens."""
        return self.image_encoder.patch_embed

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """One black image with one foreground point, of the shapes that `forward` takes."""
        height, width = self.config.input_size
        pixels = torch.zeros(1, self.config.in_channels, height, width, dtype=self.dtype)
        point = torch.tensor([[[[width / 2, height / 2]]]])
        inputs = {
            "pixel_values": pixels,
            "input_points": point,
            "input_labels": torch.ones(1, 1, 1, dtype=torch.long),
        }
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @property
    def prompts_per_group(self) -> int | None:
        """How many prompt sets are decoded together; None chooses by device and image size.

        On a processor four of `sam_vit_b` are fastest: what is known of them fits the cache. More
        on a GPU. Results do not depend on it. Can be set.
        """
        return self.mask_decoder.prompts_per_group

    @prompts_per_group.setter
    def prompts_per_group(self, count: int | None) -> None:
        if count is not None and count < 1:
            raise ValueError(f"prompts_per_group must be at least 1 or None, got {count}.")
        self.mask_decoder.prompts_per_group = count

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

    def get_image_embeddings(self, pixel_values: Tensor) -> Tensor:
        """Embeddings (N, D, H'', W'') of images, to be used again for any number of prompts.

        Args:
            pixel_values: (N, C, H, W) images, resized, normalised and padded.

        Raises:
            ValueError: The channels or the size are not the configuration's.
        """
        self._check_pixels(pixel_values)
        dtype = self.image_encoder.patch_embed.proj.weight.dtype
        return self.image_encoder(pixel_values.to(dtype))

    def get_prompt_embeddings(
        self,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        input_size: tuple[int, int] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Embeddings of prompts: tokens (N, P, M, D) and a grid (N, P, D, H'', W'').

        Without a mask the grid is (1, 1, D, 1, 1), to be broadcast; without points and boxes
        there are no tokens. What a prompt set does not have but others do has a token, too. The
        prompts have the shapes that `forward` takes.

        Args:
            input_points: (N, P, M1, 2).
            input_labels: (N, P, M1).
            input_boxes: (N, P, 4) or (N, P, M2, 4).
            input_masks: (N, 1, H', W') or (N, P, M3, H', W').
            input_size: Size (H, W) that the coordinates refer to, by default the configuration's.
        """
        input_hw = input_size or self.config.input_size
        prompts = _arrange_prompts(input_points, input_labels, input_boxes, input_masks)
        tokens, dense, exists = self.prompt_encoder(*prompts, input_hw)
        if tokens is not None and exists is not None:
            tokens = tokens[:, :, exists.any(0).any(0)]
        return tokens, dense

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        image_embeddings: Tensor | None = None,
        multimask_output: bool = True,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> SegmentAnythingOutput | tuple[Tensor, ...]:
        """Masks for every prompt set of every image.

        Coordinates are pixels of the padded model input, as the processor returns them. Points,
        boxes and masks of one prompt set describe one object together.

        Args:
            pixel_values: (N, C, H, W) images, resized, normalised and padded.
            input_points: (N, P, M1, 2) points, x before y.
            input_labels: (N, P, M1), 1 foreground, 0 background, -1 not a point, -10 padding; by
                default all are foreground.
            input_boxes: (N, P, 4), or (N, P, M2, 4) for M2 boxes that describe one object: left,
                top, right, bottom. A box of four times -10 is padding.
            input_masks: (N, 1, H', W') logits for all prompt sets of an image, or
                (N, P, M3, H', W') whose embeddings are summed over M3. A mask of NaN is padding.
            image_embeddings: (N, D, H'', W'') of `get_image_embeddings`, instead of
                `pixel_values`.
            multimask_output: True for K = `nb_multimask_outputs` nested masks a prompt set, False
                for a single one.
            labels: True masks of the padded input at any resolution, as `read_labels` takes them:
                (N, P, h, w), boolean, from 0 to 1, or 0 and 255; or (N, h, w) instance ids.
                Negative where the truth is not known. Adds the loss.
            return_dict: False for a tuple.

        Returns:
            Logits, predicted qualities, image embeddings, and the loss if there are labels.

        Raises:
            ValueError: A shape does not fit; the message says what was expected.
        """
        if pixel_values is not None and image_embeddings is None:
            image_embeddings = self.get_image_embeddings(pixel_values)
        elif pixel_values is not None or image_embeddings is None:
            raise ValueError("Give either pixel_values or image_embeddings, not both or neither.")
        logits, scores = self.decode(
            image_embeddings,
            input_points,
            input_labels,
            input_boxes,
            input_masks,
            slice(1, None) if multimask_output else slice(0, 1),
        )
        loss = None
        if labels is not None:
            loss = segmentation_loss(logits, scores, labels, self.config.mask_threshold)
        output = SegmentAnythingOutput(loss, scores, logits, image_embeddings)
        use_dict = self.config.return_dict if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    def decode(
        self,
        image_embeddings: Tensor,
        input_points: Tensor | None = None,
        input_labels: Tensor | None = None,
        input_boxes: Tensor | None = None,
        input_masks: Tensor | None = None,
        selection: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Logits (N, P, K, H', W') and qualities (N, P, K) of the selected masks.

        Args:
            image_embeddings: (N, D, H'', W'').
            input_points: As in `forward`, and so the other prompts.
            input_labels: (N, P, M1).
            input_boxes: (N, P, 4) or (N, P, M2, 4).
            input_masks: (N, 1, H', W') or (N, P, M3, H', W').
            selection: Which masks: 0 is the single one, the others the multiple ones, all of
                them by default.
        """
        inputs = self._decoder_inputs(
            image_embeddings, input_points, input_labels, input_boxes, input_masks
        )
        return self.mask_decoder(*inputs, selection)

    def decode_above(
        self,
        image_embeddings: Tensor,
        input_points: Tensor,
        input_labels: Tensor | None,
        iou_threshold: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the multiple masks of every prompt set, those whose predicted quality suffices.

        The quality is known before a mask is made, and the others never are.

        Args:
            image_embeddings: (1, D, H'', W'') of one image.
            input_points: (1, P, M1, 2).
            input_labels: (1, P, M1), by default all are foreground.
            iou_threshold: Qualities have to be above it.

        Returns:
            Logits (n, H', W'), qualities (n,), and the prompt set of each mask (n,).
        """
        inputs = self._decoder_inputs(image_embeddings, input_points, input_labels, None, None)
        logits = [image_embeddings.new_zeros(0, *self.mask_size(), dtype=self.dtype)]
        scores: list[Tensor] = []
        for decoded in self.mask_decoder.decode(*inputs):
            scores.append(decoded.iou_scores[0])
            for part in decoded.split():
                is_good = part.iou_scores[0, :, 1:] > iou_threshold
                sets, numbers = (is_good.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
                if not sets:
                    continue
                if len(sets) < len(is_good):
                    part = part.of_sets(sets)
                made = self.mask_decoder.masks(part, [1 + number for number in numbers])[0]
                logits.append(made[is_good[sets][:, numbers]])
        iou_scores = torch.cat(scores)[:, 1:]
        prompts, masks = (iou_scores > iou_threshold).nonzero(as_tuple=True)
        return torch.cat(logits), iou_scores[prompts, masks], prompts

    def _decoder_inputs(
        self,
        image_embeddings: Tensor,
        input_points: Tensor | None,
        input_labels: Tensor | None,
        input_boxes: Tensor | None,
        input_masks: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
        """Image embeddings, their positions, tokens, dense embeddings, and which tokens exist."""
        grid_h, grid_w = self._check_embeddings(image_embeddings)
        patch = self.config.encoder_patch_size
        prompts = _arrange_prompts(input_points, input_labels, input_boxes, input_masks)
        self._check_prompts(image_embeddings, *prompts)
        tokens, dense, exists = self.prompt_encoder(*prompts, (grid_h * patch, grid_w * patch))
        positions = self.prompt_encoder.pe_layer.of_grid(grid_h, grid_w)
        return image_embeddings.to(dense.dtype), positions, tokens, dense, exists

    def _check_pixels(self, pixel_values: Tensor) -> None:
        config = self.config
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.in_channels:
            raise ValueError(
                f"pixel_values must have the shape (N, {config.in_channels}, H, W), "
                f"got {tuple(pixel_values.shape)}."
            )
        height, width = pixel_values.shape[2:]
        if config.fixed_input_size and (height, width) != config.input_size:
            raise ValueError(
                f"This model takes images of {config.input_size} pixels, got {(height, width)}. "
                "Use the image processor, or load the model with fixed_input_size=False."
            )
        if height % config.encoder_patch_size or width % config.encoder_patch_size:
            raise ValueError(
                f"Height and width must be multiples of the patch size "
                f"{config.encoder_patch_size}, got {(height, width)}."
            )

    def _check_embeddings(self, image_embeddings: Tensor) -> tuple[int, int]:
        config = self.config
        if image_embeddings.ndim != 4 or image_embeddings.shape[1] != config.embed_dim:
            raise ValueError(
                f"image_embeddings must have the shape (N, {config.embed_dim}, H'', W''), "
                f"got {tuple(image_embeddings.shape)}."
            )
        grid_hw = (image_embeddings.shape[2], image_embeddings.shape[3])
        if config.fixed_input_size and grid_hw != config.grid_size():
            raise ValueError(
                f"image_embeddings must cover a grid of {config.grid_size()}, got {grid_hw}."
            )
        return grid_hw

    def _check_prompts(
        self,
        image_embeddings: Tensor,
        points: Tensor | None,
        labels: Tensor | None,
        boxes: Tensor | None,
        masks: Tensor | None,
    ) -> None:
        """Every prompt has the images of the embeddings, and all agree on the prompt sets."""
        prompts = {"input_points": points, "input_boxes": boxes, "input_masks": masks}
        given = {name: prompt for name, prompt in prompts.items() if prompt is not None}
        for name, prompt in given.items():
            if prompt.shape[0] != image_embeddings.shape[0]:
                raise ValueError(
                    f"{name} has prompts of {prompt.shape[0]} images, "
                    f"but there are {image_embeddings.shape[0]} images."
                )
        sets = {name: prompt.shape[1] for name, prompt in given.items()}
        if sets.get("input_masks") == 1:  # one mask serves every prompt set
            del sets["input_masks"]
        first = next(iter(sets.values()), 1)
        if any(count != first for count in sets.values()):
            raise ValueError(f"The prompts disagree on the number of prompt sets P: {sets}.")
        grid_h, grid_w = image_embeddings.shape[2:]
        mask_hw = (MASK_UPSCALING * grid_h, MASK_UPSCALING * grid_w)
        if masks is not None and tuple(masks.shape[3:]) != mask_hw:
            raise ValueError(
                f"input_masks must be logits of size {mask_hw}, got {tuple(masks.shape[3:])}. "
                "SAMPredictor.preprocess_masks brings a mask of the image to this size."
            )


def _arrange_prompts(
    points: Tensor | None, labels: Tensor | None, boxes: Tensor | None, masks: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Prompts with every axis of the contract; an empty prompt becomes None.

    Raises:
        ValueError: A shape is not one of those that `forward` takes.
    """
    points, labels = _arrange_points(points, labels)
    if boxes is not None:
        if boxes.ndim not in (3, 4) or boxes.shape[-1] != 4:
            raise ValueError(
                "input_boxes must have the shape (N, P, 4) or (N, P, M2, 4), "
                f"got {tuple(boxes.shape)}."
            )
        boxes = boxes[:, :, None] if boxes.ndim == 3 else boxes
        boxes = boxes if boxes.shape[1] and boxes.shape[2] else None
    if masks is not None:
        if masks.ndim not in (4, 5) or (masks.ndim == 4 and masks.shape[1] > 1):
            raise ValueError(
                "input_masks must have the shape (N, 1, H', W') or (N, P, M3, H', W'), "
                f"got {tuple(masks.shape)}."
            )
        masks = masks[:, :, None] if masks.ndim == 4 else masks
        masks = masks if masks.shape[1] and masks.shape[2] else None
    return points, labels, boxes, masks


def _arrange_points(
    points: Tensor | None, labels: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if points is None:
        if labels is not None:
            raise ValueError("input_labels need input_points: each label belongs to a point.")
        return None, None
    if points.ndim != 4 or points.shape[-1] != 2:
        raise ValueError(
            f"input_points must have the shape (N, P, M1, 2), got {tuple(points.shape)}."
        )
    if labels is None:
        labels = torch.ones(points.shape[:-1], dtype=torch.long, device=points.device)
    if labels.shape != points.shape[:-1]:
        raise ValueError(
            f"input_labels must have the shape {tuple(points.shape[:-1])}, one label a point, "
            f"got {tuple(labels.shape)}."
        )
    return (points, labels) if points.shape[1] and points.shape[2] else (None, None)
